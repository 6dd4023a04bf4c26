"""What the strategies that let several networks vote share."""

from dataclasses import dataclass

from strategies._base import parameter
from strategies._signal_score import SignalScore


@dataclass(frozen=True)
class EnsembleScore(SignalScore):
    """Score = a statistic of the predictions of M networks."""

    members: int = parameter(5, "networks that vote, M", low=2, high=100)
