"""What the strategies that aggregate one pixel map share."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import ScoreStrategy, Signals, parameter
from strategies._signals import AGGREGATIONS, pixel_signal


@dataclass(frozen=True)
class PixelUncertainty(ScoreStrategy):
    """Score = a pixel map of the softmax probabilities, averaged (or summed) over the item."""

    pixel_map: ClassVar[Any]
    """(B, C, *S) probabilities -> (B, *S), higher = more uncertain."""

    aggregate: str = parameter("mean", "how pixels become one number", choices=tuple(AGGREGATIONS))

    @property
    def signal(self) -> Signal:
        return pixel_signal(self.name, type(self).pixel_map, self.aggregate)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        return signals[self.signal.name]
