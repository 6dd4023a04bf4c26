"""Core-set in a learned metric: cover the pool by what tells patients and volumes apart."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Selection, Signals, Strategy, parameter
from strategies._signals import CONTRASTIVE_FEATURES
from strategies._similarity import unit_rows
from strategies.core_set import covering


@dataclass(frozen=True)
class MetricCoreSet(Strategy):
    """k-centre greedy, Euclidean on the output of an encoder trained by group contrastive learning on the whole pool.

    Starts from what is labelled; where nothing is, the first item is drawn at random. It needs no segmentation model.
    """

    name = "metric_core_set"
    asks_for = "least like anything labelled so far, by a learned metric"
    source = "metric-learning core-set paper, eq. 2-5"
    selection_cost = "B reads of the features, and one for each labelled item"
    further_cost = ("the encoder's training, once for a pool",)

    normalize: bool = parameter(False, "bring every feature vector to length 1 first")

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (CONTRASTIVE_FEATURES,)

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        features = signals[CONTRASTIVE_FEATURES.name][pool.known]
        if self.normalize:
            features = unit_rows(features)
        return covering(pool, features, k, rng)
