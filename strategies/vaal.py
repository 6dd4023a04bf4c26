"""VAAL: what an adversarially trained discriminator is surest to be unlabelled."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from loop.views import Embedding
from strategies._base import ScoreStrategy, Signals


def unlabeled_log_odds(logits: Tensor) -> Tensor:
    """(B, 1) logit of being labelled -> (B,) log-odds of being unlabelled."""
    return -logits[:, 0]


VAAL_UNLABELED = Signal("vaal_unlabeled", Embedding(), unlabeled_log_odds, model="vaal")
"""(N,) log((1 - p) / p), p the probability of being labelled: a float32 close to 1 would make equals of the surest."""


@dataclass(frozen=True)
class Vaal(ScoreStrategy):
    """Score = 1 - p, p the probability of being labelled that a discriminator gives the latent mean of an autoencoder.

    Both are trained anew when the labels have changed. Where nothing is labelled all scores are 1/2, and chance decides.
    """

    name = "vaal"
    asks_for = "least like anything labelled, to a discriminator"
    source = "Sinha et al. 2019; metric-learning core-set paper, baselines; BSQ paper, baselines"
    further_cost = ("a training of its own when labels have changed",)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (VAAL_UNLABELED,)

    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        odds = signals[VAAL_UNLABELED.name].astype(np.float64)
        # 1 / (1 + exp(-odds)) without the overflow.
        return np.asarray((1 + np.tanh(odds / 2)) / 2)

    def reasons(self, scores: FloatArray, chosen: npt.NDArray[np.int64]) -> tuple[str, ...]:
        if (scores == 0.5).all():
            return ("drawn at random: there are no labelled items yet to tell the others from",) * len(chosen)
        return super().reasons(scores, chosen)
