"""Stochastic batches: the best of many random batches instead of the batch of the best."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import ScoreStrategy, Selection, Signals, Strategy, parameter, places


@dataclass(frozen=True)
class StochasticBatches(Strategy):
    """Wrapper: Q = floor(M / B) random batches of B, each scored by its mean; the best batch is asked for.

    The batches are disjoint parts of one random permutation, as the paper's released code runs it; `resample` draws each
    batch on its own, as the paper prints it. A remainder smaller than B is in no batch.
    """

    name = "stochastic_batches"
    asks_for = "in the most uncertain of many random batches"
    source = "stochastic batches paper, section 2"

    inner: ScoreStrategy = parameter(None, "the strategy whose scores are averaged over a batch")
    resample: bool = parameter(False, "draw each batch independently instead of partitioning the pool")

    @property
    def needs(self) -> tuple[Signal, ...]:
        return self.inner.needs

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        candidates = pool.candidates
        scores = self.inner.score(pool, signals, rng)[candidates]
        batches = _batches(len(candidates), k, self.resample, rng)
        best = batches[np.argmax(scores[batches].mean(axis=1))]
        chosen = best[np.argsort(-scores[best], kind="stable")]
        batch = f"in the most uncertain of {len(batches)} random batches ({self.inner.asks_for}); by itself"
        why = tuple(f"{batch} in the {place}" for place in places(scores, chosen))
        return Selection(candidates[chosen], scores[chosen], why)


def _batches(n: int, size: int, resample: bool, rng: np.random.Generator) -> np.ndarray:
    """(Q, size) indices below n; Q = floor(n / size). Equal means go to the first batch, and the order is random."""
    count = n // size
    if resample:
        return np.stack([rng.choice(n, size, replace=False) for _ in range(count)])
    return rng.permutation(n)[: count * size].reshape(count, size)
