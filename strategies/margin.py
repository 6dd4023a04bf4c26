"""Smallest margin."""

from dataclasses import dataclass

from strategies._pixel_uncertainty import PixelUncertainty
from strategies._signals import margin_map


@dataclass(frozen=True)
class Margin(PixelUncertainty):
    """-mean_S( p_(1) - p_(2) ): how little the likeliest class leads the second."""

    name = "margin"
    asks_for = "where the two likeliest classes are closest"
    source = "ALGES paper, eq. 9-10"
    never_negative = False
    pixel_map = staticmethod(margin_map)
