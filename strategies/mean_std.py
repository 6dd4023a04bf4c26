"""Standard deviation under Monte Carlo dropout."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._mc_dropout import McDropout
from strategies._signals import mc_mean_std


@dataclass(frozen=True)
class MeanStd(McDropout):
    """Mean over classes and pixels of std_t p_t."""

    name = "mean_std"
    asks_for = "where repeated predictions vary most (standard deviation)"
    source = "USIM paper, baselines; Kendall 2017"

    @property
    def signal(self) -> Signal:
        return mc_mean_std(self.passes, self.rate)
