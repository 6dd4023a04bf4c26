"""USIM with the Fisher kernel."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from loop.pool import Pool
from loop.signals import FloatArray, PoolMean
from loop.views import Gradients
from strategies._base import Need, Signals, parameter
from strategies._compiled import IntArray
from strategies._signals import gradients
from strategies._similarity import similarity_kernel
from strategies._usim import EMBEDDING_SIZE, Usim


@dataclass(frozen=True)
class UsimF(Usim):
    """Similarity: g^T (F + lambda)^-1 q on decoder parameters drawn in proportion to the empirical Fisher diagonal F.

    F is the mean of the squared gradients over a part of the query set. lambda is `damping` times the mean of F over the
    parameters that were drawn.
    """

    name = "usim_f"
    asks_for = "most like the uncertain ones together (Fisher kernel)"
    source = "USIM paper, eq. 1, 3-4"
    further_cost = ("a forward and a backward pass", "another for each of 200 queries")

    size: int = parameter(EMBEDDING_SIZE, "parameters drawn", low=1, high=10_000_000)
    fisher_items: int = parameter(200, "queries that the Fisher diagonal is averaged over", low=1, high=1_000_000)
    damping: float = parameter(0.01, "lambda as a share of the mean of F", low=0, high=1e6)
    normalize: bool = parameter(False, "divide the kernel by the lengths of both gradients under F")

    def needs_next(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> tuple[Need, ...]:
        fisher = self._fisher(pool, self.query_set(pool, signals, k, rng), rng)
        if fisher.name not in signals:
            return (fisher,)
        return (gradients("decoder", indices=self._drawn(signals[fisher.name], rng)),)

    def _fisher(self, pool: Pool, query: IntArray, rng: np.random.Generator) -> PoolMean:
        rows = pool.candidates[rng.permutation(query)[: self.fisher_items]]
        digest = hashlib.sha256(rows.tobytes()).hexdigest()[:12]
        return PoolMean(f"fisher_decoder_{digest}", Gradients("decoder"), _square, rows)

    def _drawn(self, fisher: FloatArray, rng: np.random.Generator) -> tuple[int, ...]:
        """Parameters, ascending, drawn without replacement in proportion to F; those of no weight never."""
        weights = fisher.astype(np.float64)
        count = min(self.size, int(np.count_nonzero(weights)))
        if not count:
            return tuple(range(min(self.size, len(weights))))
        # The k largest of log(weight) + Gumbel noise are such a draw, without working through the draws one by one.
        noise = rng.gumbel(size=len(weights))
        keys = np.log(weights, out=np.full(len(weights), -np.inf), where=weights > 0) + noise
        return tuple(np.sort(np.argpartition(-keys, count - 1)[:count]).tolist())

    def kernel(self, pool: Pool, signals: Signals, query: IntArray, rng: np.random.Generator) -> FloatArray:
        fisher = signals[self._fisher(pool, query, rng).name]
        drawn = self._drawn(fisher, rng)
        kept = fisher[list(drawn)].astype(np.float64)
        damped = kept + self.damping * kept.mean()
        embeddings = signals[gradients("decoder", indices=drawn).name][pool.candidates]
        weights = np.divide(1.0, damped, out=np.zeros_like(damped), where=damped > 0)
        metric: Literal["cosine", "dot"] = "cosine" if self.normalize else "dot"
        return similarity_kernel(embeddings, embeddings[query], metric=metric, weights=weights)


def _square(gradient: Tensor) -> Tensor:
    return gradient.square()
