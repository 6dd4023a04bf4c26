"""When a new model is due: counts and times in, a reason out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What the policy looks at.

    Attributes:
        new_slices: annotated since the labels that the last training saw.
        round_done: every item of the newest round is labelled or skipped.
        seconds_since_training: since the last automatic or manual training started; None if there was none.
        training: one is running now.
    """

    new_slices: int
    round_done: bool
    seconds_since_training: float | None
    training: bool


@dataclass(frozen=True)
class RetrainPolicy:
    """Retrain after n slices, or when a round is done, but not more often than the interval allows."""

    enabled: bool = True
    after_slices: int = 0
    when_round_done: bool = True
    min_interval: float = 0.0

    def due(self, counts: Counts) -> str | None:
        """Why a training should start now, or None."""
        if not self.enabled or counts.training or counts.new_slices == 0:
            return None
        if counts.seconds_since_training is not None and counts.seconds_since_training < self.min_interval:
            return None
        if self.after_slices and counts.new_slices >= self.after_slices:
            return f"{counts.new_slices} newly labelled slices"
        if self.when_round_done and counts.round_done:
            return f"round done, {counts.new_slices} newly labelled slices"
        return None
