"""Core-set: cover the pool."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import Selection, Signals, Strategy
from strategies._kcenter import k_center_greedy
from strategies._signals import BOTTLENECK_FEATURES


@dataclass(frozen=True)
class CoreSet(Strategy):
    """k-centre greedy, Euclidean, on globally averaged bottleneck features, starting from what is labelled.

    Where nothing is labelled, the first item is drawn at random.
    """

    name = "core_set"
    asks_for = "least like anything labelled so far"
    source = "Sener & Savarese 2018; ALGES, USIM and metric-learning core-set papers, baselines"
    selection_cost = "B reads of the features, and one for each labelled item"

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (BOTTLENECK_FEATURES,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        return covering(pool, signals[BOTTLENECK_FEATURES.name][pool.known], k, rng)


def covering(pool: Pool, features: FloatArray, k: int, rng: np.random.Generator) -> Selection:
    """The k candidates that k-centre greedy adds to what is labelled, scored by their distances.

    Args:
        features: (K, D) of the pool's known rows.
    """
    rows, candidates = pool.known, pool.candidates_among_known
    labeled = pool.labeled[rows]
    picked, distances = k_center_greedy(features, k, labeled=labeled, rng=rng, candidates=candidates)
    return Selection(rows[picked], distances, tuple(_reasons(distances, len(candidates), bool(labeled.any()))))


def _reasons(distances: FloatArray, count: int, from_labels: bool) -> Iterator[str]:
    for place, distance in enumerate(distances):
        if place == 0:
            why = f"of {count}, the one least like anything labelled so far"
            yield why if from_labels else "drawn at random, to begin with: nothing is labelled yet"
        elif distance == 0:
            yield "nothing new is left: looks to the model just like one before it"
        elif from_labels:
            yield f"of {count}, the one least like anything labelled so far or chosen before it"
        else:
            yield f"of {count}, the one least like those chosen before it"
