"""What the strategies that run the network several times with dropout share."""

from dataclasses import dataclass

from strategies._base import parameter
from strategies._signal_score import SignalScore

USIM_RATE = 0.1
"""The rate of USIM's released code at query time, and the one our networks are trained with."""


@dataclass(frozen=True)
class McDropout(SignalScore):
    """Score = a statistic of T stochastic passes."""

    passes: int = parameter(10, "stochastic forward passes, T", low=2, high=1000)
    rate: float = parameter(USIM_RATE, "dropout rate in these passes", low=0, high=0.95)
