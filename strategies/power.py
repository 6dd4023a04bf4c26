"""Power noise: a draw in proportion to the scores instead of the best of them."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import ScoreStrategy, Selection, Signals, Strategy, parameter, places
from strategies._noise import power_noise
from strategies._topk import top_k


@dataclass(frozen=True)
class Power(ScoreStrategy):
    """Wrapper: log(score) + Gumbel(0, 1 / beta), for scores that are 0 or more."""

    name = "power"
    asks_for = "drawn in proportion to its score"
    source = "Kirsch et al. 2023; nnActive, 2025"

    never_negative = False

    inner: ScoreStrategy = parameter(None, "the strategy whose scores are noised; they must not be negative")
    beta: float = parameter(1.0, "the larger, the less noise", low=1e-6, high=1e6)

    @classmethod
    def may_wrap(cls, inner: Strategy) -> bool:
        return isinstance(inner, ScoreStrategy) and inner.never_negative

    @property
    def needs(self) -> tuple[Signal, ...]:
        return self.inner.needs

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        scores = np.full(len(pool), -np.inf)
        scores[pool.candidates] = power_noise(self._plain(pool, signals, rng), self.beta, rng)
        return scores

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        plain = self._plain(pool, signals, rng)
        noised = power_noise(plain, self.beta, rng)
        chosen = top_k(noised, k, rng)
        # The place without the noise: that is what the item is, not how the draw went.
        drawn = f"drawn at random, the likelier the higher its score ({self.inner.asks_for}); by itself"
        why = (f"{drawn} in the {place}" for place in places(plain, chosen))
        return Selection(pool.candidates[chosen], noised[chosen], tuple(why))

    def _plain(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        """(M,) scores of the candidates, without noise."""
        plain = self.inner.score(pool, signals, rng)[pool.candidates]
        if plain.min() < -1e-6:
            raise ValueError(f"{self.name} needs scores of 0 or more, {self.inner.name} gave {plain.min():.3g}.")
        return plain
