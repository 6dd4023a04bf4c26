"""What the strategies that aggregate one pixel map share."""

from dataclasses import dataclass
from typing import Any, ClassVar

from loop.signals import Signal
from strategies._base import parameter
from strategies._signal_score import SignalScore
from strategies._signals import AGGREGATIONS, pixel_signal


@dataclass(frozen=True)
class PixelUncertainty(SignalScore):
    """Score = a pixel map of the softmax probabilities, averaged (or summed) over the item."""

    pixel_map: ClassVar[Any]
    """(B, C, *S) probabilities -> (B, *S), higher = more uncertain."""

    aggregate: str = parameter("mean", "how pixels become one number", choices=tuple(AGGREGATIONS))

    @property
    def signal(self) -> Signal:
        return pixel_signal(self.name, type(self).pixel_map, self.aggregate)
