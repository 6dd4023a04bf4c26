"""CoreGCN: cover the pool as a graph network sees it that learned what is labelled."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import Selection, Signals, Strategy, parameter
from strategies._graph import hidden_features
from strategies._kcenter import k_center_greedy
from strategies._signals import BOTTLENECK_FEATURES
from strategies._similarity import unit_rows


@dataclass(frozen=True)
class CoreGcn(Strategy):
    """k-centre greedy, Euclidean, on the hidden features of a graph network, starting from what is labelled.

    The network is trained anew for each selection to tell labelled items from the others, on the graph of the cosine
    similarities of the bottleneck features. Where nothing is labelled there is nothing to learn: k-centre greedy on the
    features at length 1, the first item drawn at random.
    """

    name = "core_gcn"
    asks_for = "least like anything labelled, to a network that tells labelled from unlabelled"
    source = "Caramalau et al. 2021; metric-learning core-set paper, baselines"
    selection_cost = "200 steps of a small network on the labelled and at most `subset` others, B reads of 128 features"

    subset: int = parameter(
        10_000, "most candidates that are looked at; of more, a random part (never less than the budget)", low=1
    )

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (BOTTLENECK_FEATURES,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        count = min(len(pool.candidates), max(self.subset, k))
        drawn = rng.choice(pool.candidates, count, replace=False) if count < len(pool.candidates) else pool.candidates
        rows = np.sort(np.concatenate([np.flatnonzero(pool.labeled), drawn]))
        features, labeled = signals[BOTTLENECK_FEATURES.name][rows], pool.labeled[rows]
        from_labels = bool(labeled.any())
        seen = hidden_features(features, labeled, rng) if from_labels else unit_rows(features.astype(np.float64))
        picked, distances = k_center_greedy(seen, k, labeled=labeled, rng=rng)
        # Places among the rows that took part are no pool rows yet.
        return Selection(rows[picked], distances, tuple(_reasons(distances, count, from_labels)))


def _reasons(distances: FloatArray, count: int, from_labels: bool) -> Iterator[str]:
    for place, distance in enumerate(distances):
        if place == 0 and not from_labels:
            yield "drawn at random, to begin with: nothing is labelled yet"
        elif distance == 0:
            yield "nothing new is left: looks to the graph network just like one before it"
        elif place == 0:
            yield f"of {count}, the one the graph network finds least like anything labelled so far"
        elif from_labels:
            yield f"of {count}, the one the graph network finds least like anything labelled so far or chosen before it"
        else:
            yield f"of {count}, the one whose features point furthest away from those chosen before it"
