"""Random sampling that makes sure of foreground: the baseline plain active learning often does not beat."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter
from strategies._signals import FOREGROUND_FRACTION


@dataclass(frozen=True)
class ForegroundRandom(Strategy):
    """A share of the batch uniform among items whose predicted foreground is not empty, the rest uniform among all others.

    The prediction stands where the peers' version reads the ground truth, so it can be used for real annotation.
    """

    name = "foreground_random"
    asks_for = "drawn at random, some where the model sees foreground"
    source = "nnActive, 2025"

    fraction: float = parameter(0.33, "share of the batch drawn among items with predicted foreground", low=0, high=1)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (FOREGROUND_FRACTION,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        foreground = pool.candidates[signals[FOREGROUND_FRACTION.name][pool.candidates] > 0]
        sure = rng.permutation(foreground)[: round(self.fraction * k)]
        others = rng.permutation(np.setdiff1d(pool.candidates, sure))[: k - len(sure)]
        rows = rng.permutation(np.concatenate([sure, others]))
        why = np.where(np.isin(rows, sure), "drawn among items with predicted foreground", "drawn at random")
        return Selection(rows, np.linspace(1, 0, k, endpoint=False), tuple(why.tolist()))
