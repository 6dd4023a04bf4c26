"""ALGES on gradients by semantic class."""

from dataclasses import dataclass

from strategies._gradient_clusters import GradientClusters
from strategies._signals import ALGES_SEMANTIC


@dataclass(frozen=True)
class AlgesSem(GradientClusters):
    """u_k = sum over the pixels with yhat = k of the norm of their gradient, K values, then k-means++ seeding."""

    name = "alges_sem"
    asks_for = "would change some class of the model much"
    source = "ALGES paper, eq. 6"
    embedding = ALGES_SEMANTIC
