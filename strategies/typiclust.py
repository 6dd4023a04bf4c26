"""TypiClust: typical items of clusters that hold no label yet."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter
from strategies._signals import BOTTLENECK_FEATURES
from strategies._typicality import typical_rows


@dataclass(frozen=True)
class TypiClust(Strategy):
    """k-means into min(|L| + B, 500) clusters of bottleneck features; of each, fewest labels first, the most typical item."""

    name = "typiclust"
    asks_for = "typical of a group that look alike and have few labels"
    source = "Hacohen et al. 2022; metric-learning core-set paper, baselines"
    selection_cost = "k-means with min(|L| + B, 500) clusters"

    normalize: bool = parameter(False, "bring every feature vector to length 1 first")

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (BOTTLENECK_FEATURES,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows, candidates = pool.known, pool.candidates_among_known
        features = signals[BOTTLENECK_FEATURES.name][rows]
        picked, typicality, sizes, labels = typical_rows(
            features, k, labeled=pool.labeled[rows], rng=rng, candidates=candidates, normalize=self.normalize
        )
        why = (
            f"typical of a group of {size} that look alike, {labelled or 'none'} of them labelled"
            if size > 1
            else "looks to the model like nothing else: a group of its own"
            for size, labelled in zip(sizes, labels, strict=True)
        )
        return Selection(rows[picked], typicality, tuple(why))
