"""Suggestive annotation: of the most uncertain, those that stand for the most others."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, places
from strategies._most_uncertain import MostUncertain
from strategies._signals import BOTTLENECK_FEATURES
from strategies._submodular import maximum_cover


@dataclass(frozen=True)
class SuggestiveAnnotation(MostUncertain):
    """The n_unc most uncertain by MC-dropout variance, then greedy maximum cover of all candidates among them.

    argmax_j sum_{i in U} max(cos(i, j), best_i) on bottleneck descriptors.
    """

    name = "suggestive_annotation"
    asks_for = "uncertain, and like many others"
    source = "BSQ paper, eq. 9-10; Yang et al. 2017"
    selection_cost = "a (n_unc, N) matrix of similarities"

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.uncertainty, BOTTLENECK_FEATURES)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows = pool.candidates
        scores, uncertain = self.most_uncertain(pool, signals, k, rng)
        picked, gains = maximum_cover(signals[BOTTLENECK_FEATURES.name][rows], k, candidates=uncertain)
        why = (f"uncertain ({place}), and stands for many that look like it" for place in places(scores, picked))
        return Selection(rows[picked], gains, tuple(why))
