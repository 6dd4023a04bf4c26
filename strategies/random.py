"""Uniform sampling without replacement: what everything else has to beat."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray
from strategies._base import ScoreStrategy, Signals


@dataclass(frozen=True)
class Random(ScoreStrategy):
    """Candidates in random order; the score is the random number that ordered them."""

    name = "random"
    asks_for = "drawn at random"

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        return rng.random(len(pool))

    def reasons(self, scores: FloatArray, chosen: np.ndarray) -> tuple[str, ...]:
        return ()
