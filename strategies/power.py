"""Power noise: a draw in proportion to the scores instead of the best of them."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import ScoreStrategy, Signals, parameter
from strategies._noise import power_noise


@dataclass(frozen=True)
class Power(ScoreStrategy):
    """Wrapper: log(score) + Gumbel(0, 1 / beta), for scores that are 0 or more."""

    name = "power"
    asks_for = "drawn in proportion to its score"
    source = "Kirsch et al. 2023; nnActive, 2025"

    inner: ScoreStrategy = parameter(None, "the strategy whose scores are noised; they must not be negative")
    beta: float = parameter(1.0, "the larger, the less noise", low=1e-6, high=1e6)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return self.inner.needs

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        rows = pool.candidates
        scores = np.full(len(pool), -np.inf)
        plain = self.inner.score(pool, signals, rng)[rows]
        if plain.min() < -1e-6:
            raise ValueError(f"{self.name} needs scores of 0 or more, {self.inner.name} gave {plain.min():.3g}.")
        scores[rows] = power_noise(plain, self.beta, rng)
        return scores

    def reasons(self, scores: FloatArray, chosen: np.ndarray) -> tuple[str, ...]:
        return (f"drawn at random, the likelier the higher it scores ({self.inner.asks_for})",) * len(chosen)
