"""When a new model is due: counts and times in, a reason out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What the policy looks at.

    Attributes:
        new_slices: annotated since the labels that the last training saw.
        round_done: every item of the newest round is labelled or skipped.
        seconds_since_training: since the last automatic or manual training started; None if there was none.
        training: one is running now.
        heads_wanted: by strategies that were stood in for since, because the weights in use lack an auxiliary head.
    """

    new_slices: int
    round_done: bool
    seconds_since_training: float | None
    training: bool
    heads_wanted: Sequence[str] = ()


@dataclass(frozen=True)
class RetrainPolicy:
    """Retrain after n slices, when a round is done, or for a head, but not more often than the interval allows."""

    enabled: bool = True
    after_slices: int = 0
    when_round_done: bool = True
    min_interval: float = 0.0

    def due(self, counts: Counts) -> str | None:
        """Why a training should start now, or None."""
        if not self.enabled or counts.training or not (counts.new_slices or counts.heads_wanted):
            return None
        if counts.seconds_since_training is not None and counts.seconds_since_training < self.min_interval:
            return None
        if counts.heads_wanted:
            return f"{', '.join(counts.heads_wanted)} needs a head that was not trained with the model"
        if self.after_slices and counts.new_slices >= self.after_slices:
            return f"{counts.new_slices} newly labelled slices"
        if self.when_round_done and counts.round_done:
            return f"round done, {counts.new_slices} newly labelled slices"
        return None
