"""Disagreement under test-time augmentation."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._base import parameter
from strategies._signal_score import SignalScore
from strategies._signals import tta_divergence


@dataclass(frozen=True)
class Tta(SignalScore):
    """Jensen-Shannon divergence, in nats, among the predictions of V augmented views, each brought back to the item's grid."""

    name = "tta"
    asks_for = "where small rotations change the prediction most"
    source = "stochastic batches paper, baselines; TAAL"

    views: int = parameter(8, "augmented views, V; the item itself is the first", low=2, high=1000)
    rotation: float = parameter(10.0, "largest angle of a view in degrees, either way", low=0, high=180)
    noise: float = parameter(0.01, "standard deviation of the noise on the normalised image", low=0, high=10)

    @property
    def signal(self) -> Signal:
        return tta_divergence(self.views, self.rotation, self.noise)
