"""Maximum entropy."""

from dataclasses import dataclass

from loop.views import entropy_map
from strategies._pixel_uncertainty import PixelUncertainty


@dataclass(frozen=True)
class MaxEntropy(PixelUncertainty):
    """mean_S( -sum_c p log p ), in nats."""

    name = "max_entropy"
    asks_for = "most uncertain by entropy"
    source = "ALGES paper, eq. 7-8"
    pixel_map = staticmethod(entropy_map)
