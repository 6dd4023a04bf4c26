"""Entropy of an ensemble's mean prediction."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._ensemble import EnsembleScore
from strategies._signals import ensemble_entropy


@dataclass(frozen=True)
class EnsembleEntropy(EnsembleScore):
    """mean_S H(mean_m p_m), in nats."""

    name = "ensemble_entropy"
    asks_for = "where several models together are least certain"
    source = "metric-learning core-set paper, baselines"

    @property
    def signal(self) -> Signal:
        return ensemble_entropy(self.members)
