"""USIM with cosine similarity."""

from dataclasses import dataclass

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import Signals, parameter
from strategies._compiled import IntArray
from strategies._signals import gradients
from strategies._similarity import similarity_kernel
from strategies._usim import EMBEDDING_SIZE, Usim


@dataclass(frozen=True)
class UsimC(Usim):
    """Similarity: cosine of the bottleneck's gradients of mean_S log p(yhat), cut to their first values."""

    name = "usim_c"
    asks_for = "most like the uncertain ones together (cosine)"
    source = "USIM paper, eq. 1-2"

    size: int = parameter(EMBEDDING_SIZE, "values kept of a gradient", low=1, high=10_000_000)

    @property
    def gradient(self) -> Signal:
        """(N, D) the embedding."""
        return gradients("bottleneck", keep=self.size)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.class_variance, self.gradient)

    def kernel(self, pool: Pool, signals: Signals, query: IntArray, rng: np.random.Generator) -> FloatArray:
        embeddings = signals[self.gradient.name][pool.candidates]
        return similarity_kernel(embeddings, embeddings[query], metric="cosine")
