"""Suggestive annotation: of the most uncertain, those that stand for the most others."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter, places
from strategies._signals import BOTTLENECK_FEATURES, mc_variance
from strategies._submodular import maximum_cover
from strategies._topk import top_k


@dataclass(frozen=True)
class SuggestiveAnnotation(Strategy):
    """The n_unc most uncertain by MC-dropout variance, then greedy maximum cover of all candidates among them.

    argmax_j sum_{i in U} max(cos(i, j), best_i) on bottleneck descriptors.
    """

    name = "suggestive_annotation"
    asks_for = "uncertain, and like many others"
    source = "BSQ paper, eq. 9-10; Yang et al. 2017"
    selection_cost = "a (n_unc, N) matrix of similarities"

    n_unc: int = parameter(
        0, "how many of the most uncertain are looked at; 0 is twice the budget", low=0, high=1_000_000
    )
    passes: int = parameter(17, "stochastic forward passes of the uncertainty, T", low=2, high=1000)
    rate: float = parameter(0.5, "dropout rate in these passes", low=0, high=0.95)

    @property
    def uncertainty(self) -> Signal:
        """(N,) what uncertain means."""
        return mc_variance(self.passes, self.rate)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.uncertainty, BOTTLENECK_FEATURES)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows = pool.candidates
        scores = signals[self.uncertainty.name][rows]
        count = min(max(self.n_unc or 2 * k, k), len(rows))
        uncertain = np.sort(top_k(scores, count, rng))
        picked, gains = maximum_cover(signals[BOTTLENECK_FEATURES.name][rows], k, candidates=uncertain)
        why = (f"uncertain ({place}), and stands for many that look like it" for place in places(scores, picked))
        return Selection(rows[picked], gains, tuple(why))
