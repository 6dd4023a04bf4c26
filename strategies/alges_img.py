"""ALGES on whole-image gradients."""

from dataclasses import dataclass

from strategies._gradient_clusters import GradientClusters
from strategies._signals import ALGES_IMAGE


@dataclass(frozen=True)
class AlgesImg(GradientClusters):
    """g = concat_k mean_S (p_k - 1[k = yhat]) z, all K * d values, then k-means++ seeding."""

    name = "alges_img"
    asks_for = "would change the model much, each in its own way"
    source = "ALGES paper, eq. 4"
    embedding = ALGES_IMAGE
