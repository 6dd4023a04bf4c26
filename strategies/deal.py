"""DEAL: difficulty-aware active learning, by difficulty entropy."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._base import parameter
from strategies._signal_score import SignalScore
from strategies._signals import difficulty_entropy


@dataclass(frozen=True)
class Deal(SignalScore):
    """-sum_b h_b log h_b of the histogram h of the item's difficulty map over [0, 1], in nats."""

    name = "deal"
    asks_for = "with parts of the most different difficulty"
    source = "Xie et al. 2020; ALGES paper, baselines"

    bins: int = parameter(10, "bins of the histogram, over [0, 1]", low=2, high=1000)

    @property
    def signal(self) -> Signal:
        return difficulty_entropy(self.bins)
