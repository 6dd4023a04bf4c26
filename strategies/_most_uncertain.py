"""What the strategies share that choose among the most uncertain."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import Signals, Strategy, parameter
from strategies._compiled import IntArray
from strategies._signals import mc_variance
from strategies._topk import top_k


@dataclass(frozen=True)
class MostUncertain(Strategy):
    """The n_unc most uncertain by MC-dropout variance, from which the batch is then chosen (BSQ paper, section 2)."""

    n_unc: int = parameter(
        0, "how many of the most uncertain are looked at; 0 is twice the budget", low=0, high=1_000_000
    )
    passes: int = parameter(17, "stochastic forward passes of the uncertainty, T", low=2, high=1000)
    rate: float = parameter(0.5, "dropout rate in these passes", low=0, high=0.95)

    @property
    def uncertainty(self) -> Signal:
        """(N,) what uncertain means."""
        return mc_variance(self.passes, self.rate)

    def most_uncertain(
        self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator
    ) -> tuple[FloatArray, IntArray]:
        """(M,) uncertainties of the candidates, and the places, ascending, of those that are looked at: k at least."""
        scores = signals[self.uncertainty.name][pool.candidates]
        count = min(max(self.n_unc or 2 * k, k), len(scores))
        return scores, np.sort(top_k(scores, count, rng))
