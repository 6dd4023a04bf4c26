"""Least confidence."""

from dataclasses import dataclass

from strategies._pixel_uncertainty import PixelUncertainty
from strategies._signals import least_confidence_map


@dataclass(frozen=True)
class LeastConfidence(PixelUncertainty):
    """-mean_S( max_c p )."""

    name = "least_confidence"
    asks_for = "least confident prediction"
    source = "ALGES paper, eq. 11-12"
    never_negative = False
    pixel_map = staticmethod(least_confidence_map)
