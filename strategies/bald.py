"""Bayesian active learning by disagreement."""

from dataclasses import dataclass

from loop.signals import Signal
from strategies._mc_dropout import McDropout
from strategies._signals import mc_bald


@dataclass(frozen=True)
class Bald(McDropout):
    """mean_S( H(mean_t p_t) - mean_t H(p_t) ), in nats, never below 0."""

    name = "bald"
    asks_for = "where repeated predictions contradict each other most"
    source = "Houlsby 2011; USIM and metric-learning core-set papers, baselines"

    @property
    def signal(self) -> Signal:
        return mc_bald(self.passes, self.rate)
