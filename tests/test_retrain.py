"""When a training is due."""

import pytest

from loop.retrain import Counts, RetrainPolicy

QUIET = Counts(new_slices=5, round_done=False, seconds_since_training=None, training=False)


def counts(**changes: object) -> Counts:
    return Counts(**{**QUIET.__dict__, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "state", "due"),
    [
        (RetrainPolicy(), QUIET, False),
        (RetrainPolicy(), counts(round_done=True), True),
        (RetrainPolicy(), counts(round_done=True, new_slices=0), False),
        (RetrainPolicy(), counts(round_done=True, training=True), False),
        (RetrainPolicy(enabled=False), counts(round_done=True), False),
        (RetrainPolicy(when_round_done=False), counts(round_done=True), False),
        (RetrainPolicy(after_slices=5), QUIET, True),
        (RetrainPolicy(after_slices=6), QUIET, False),
        (RetrainPolicy(after_slices=5, min_interval=60), counts(seconds_since_training=59.0), False),
        (RetrainPolicy(after_slices=5, min_interval=60), counts(seconds_since_training=60.0), True),
        (RetrainPolicy(when_round_done=False), counts(new_slices=0, heads_wanted=["deal"]), True),
        (RetrainPolicy(enabled=False), counts(heads_wanted=["deal"]), False),
        (RetrainPolicy(), counts(heads_wanted=["deal"], training=True), False),
        (RetrainPolicy(min_interval=60), counts(heads_wanted=["deal"], seconds_since_training=59.0), False),
    ],
)
def test_due(policy: RetrainPolicy, state: Counts, due: bool) -> None:
    reason = policy.due(state)
    assert bool(reason) == due
    assert reason is None or (", ".join(state.heads_wanted) or str(state.new_slices)) in reason
