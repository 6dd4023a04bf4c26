"""What the strategies share whose score is one signal as it is."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import ScoreStrategy, Signals


@dataclass(frozen=True)
class SignalScore(ScoreStrategy):
    """Score = a signal (N,), higher = more wanted."""

    @property
    @abstractmethod
    def signal(self) -> Signal:
        """The signal that is the score."""

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        return signals[self.signal.name]
