"""Variance under Monte Carlo dropout."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._base import parameter
from strategies._mc_dropout import McDropout
from strategies._signals import mc_variance


@dataclass(frozen=True)
class McVariance(McDropout):
    """Mean over the classes of mean_S var_t p_t; the variance is divided by T."""

    name = "mc_variance"
    asks_for = "where repeated predictions vary most (variance)"
    source = "BSQ paper, eq. 2"

    passes: int = parameter(17, "stochastic forward passes, T", low=2, high=1000)
    rate: float = parameter(0.5, "dropout rate in these passes", low=0, high=0.95)
    background: bool = parameter(True, "count the background as a class")

    @property
    def signal(self) -> Signal:
        return mc_variance(self.passes, self.rate, background=self.background)
