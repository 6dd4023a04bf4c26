"""BADGE on the last layer."""

from dataclasses import dataclass

from strategies._base import parameter
from strategies._gradient_clusters import GradientClusters
from strategies._signals import ALGES_IMAGE


@dataclass(frozen=True)
class Badge(GradientClusters):
    """The embedding of `alges_img`; the largest gradient first, then plain D^2 sampling."""

    name = "badge"
    asks_for = "would change the model most, each in its own way"
    source = "Ash et al. 2020, algorithm 1; USIM paper, baselines"
    embedding = ALGES_IMAGE

    first: str = parameter(
        "max_norm", "the first item: random, or the one with the largest gradient", choices=("random", "max_norm")
    )
    local_trials: int = parameter(1, "draws a pick, of which the best is kept; 0 is 2 + ln(budget)", low=0, high=1000)
