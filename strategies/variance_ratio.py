"""Variation ratio of an ensemble."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._ensemble import EnsembleScore
from strategies._signals import variance_ratio


@dataclass(frozen=True)
class VarianceRatio(EnsembleScore):
    """mean_S( 1 - modal vote count / M )."""

    name = "variance_ratio"
    asks_for = "where several models disagree most"
    source = "metric-learning core-set paper, baselines; Beluch 2018"

    @property
    def signal(self) -> Signal:
        return variance_ratio(self.members)
