"""What both forms of uncertainty-aware submodular mutual information share."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from loop.pool import Pool
from loop.signals import FloatArray, Signal
from strategies._base import Selection, Signals, Strategy, parameter
from strategies._compiled import IntArray
from strategies._elbow import query_size
from strategies._mc_dropout import USIM_RATE
from strategies._signals import mc_class_variance
from strategies._submodular import facility_location_mutual_information

EMBEDDING_SIZE = 10_000


@dataclass(frozen=True)
class Usim(Strategy):
    """Candidates that are together most like a query set of uncertain items, by facility-location mutual information.

    Uncertainty: sum_c w_c U_c with U_c the variance of class c over the dropout passes, w_c = 1 / (annotated voxels of c)
    and no weight for the background. The query set is drawn with replacement in proportion to it; its size is the elbow of
    the sorted uncertainties, at least five budgets.
    """

    selection_cost = "a (N, |Q|) matrix of similarities, read about six times"

    passes: int = parameter(10, "stochastic forward passes, T", low=2, high=1000)
    rate: float = parameter(USIM_RATE, "dropout rate in these passes", low=0, high=0.95)
    eta: float = parameter(1.0, "weight of being like some query, against covering all", low=0, high=1e6)
    signed: bool = parameter(False, "take negative similarities as they are; otherwise they count as 0")
    backend: str = parameter("exact", "what maximises the mutual information", choices=("exact", "submodlib"))

    @property
    def class_variance(self) -> Signal:
        """(N, C) dropout variance of each class."""
        return mc_class_variance(self.passes, self.rate)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return (self.class_variance,)

    def uncertainties(self, pool: Pool, signals: Signals) -> FloatArray:
        """(M,) class-weighted uncertainty of the candidates.

        A class that nobody annotated yet counts as one voxel; where voxels were not counted, all classes weigh the same.
        """
        variance = signals[self.class_variance.name][pool.candidates].astype(np.float64)
        counts = pool.voxels if len(pool.voxels) == variance.shape[1] else np.ones(variance.shape[1])
        weights = 1 / np.maximum(counts, 1)
        weights[0] = 0
        found: FloatArray = variance @ (weights / weights.sum())
        return found

    def query_set(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> IntArray:
        """(|Q|,) places among the candidates, drawn with replacement in proportion to their uncertainty."""
        uncertainties = self.uncertainties(pool, signals)
        size, total = query_size(uncertainties, k), uncertainties.sum()
        return rng.choice(len(uncertainties), size, p=uncertainties / total if total > 0 else None)

    @abstractmethod
    def kernel(self, pool: Pool, signals: Signals, query: IntArray, rng: np.random.Generator) -> FloatArray:
        """(M, |Q|) similarity of each candidate to each query."""

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        query = self.query_set(pool, signals, k, rng)
        kernel = self.kernel(pool, signals, query, rng)
        # submodlib cannot pick all there are; then there is nothing to choose either.
        backend = cast(Literal["exact", "submodlib"], self.backend) if k < len(kernel) else "exact"
        picked, gains = facility_location_mutual_information(
            kernel, k, eta=self.eta, signed=self.signed, backend=backend
        )
        return Selection(pool.candidates[picked], gains, (self._reason(pool, signals, query),) * k)

    def _reason(self, pool: Pool, signals: Signals, query: IntArray) -> str:
        others = len(np.unique(query))
        if not self.uncertainties(pool, signals).any():
            return f"looks to the model like many of {others} others, drawn at random because none is uncertain"
        rare = "; rarely annotated structures count more" if len(pool.voxels) else ""
        return f"looks to the model like many of {others} uncertain ones{rare}"
