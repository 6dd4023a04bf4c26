"""Bayesian sample queries: rows that are likely in the pool and unlikely among the annotated, by diagonal Gaussians."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from loop.signals import FloatArray

_Array = npt.NDArray[np.float64]
_Rows = npt.NDArray[np.int64]
_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class DiagonalGaussian:
    """What is fitted to some latents, by maximum likelihood.

    Attributes:
        count: how many there were.
        mean: (D,).
        squares: (D,) sum of squared deviations from the mean.
    """

    count: int
    mean: _Array
    squares: _Array

    @classmethod
    def fitted(cls, latents: FloatArray) -> "DiagonalGaussian":
        """Of latents (N, D), N >= 1."""
        mean = latents.mean(0, dtype=np.float64)
        squares = np.zeros_like(mean)
        # In parts: the deviations of a large pool, in double precision, would be several times its size.
        for part in _parts(latents):
            squares += ((part - mean) ** 2).sum(0)
        return cls(len(latents), mean, squares)

    def with_another(self, latent: FloatArray) -> "DiagonalGaussian":
        """The same with one more (D,) (Welford 1962)."""
        count, away = self.count + 1, latent - self.mean
        mean = self.mean + away / count
        return DiagonalGaussian(count, mean, self.squares + away * (latent - mean))

    def scale(self, floor: float) -> _Array:
        """(D,) standard deviations, divided by N, none below the floor."""
        return np.maximum(np.sqrt(self.squares / self.count), floor)


def log_tail(latents: FloatArray, mean: _Array, scale: _Array) -> _Array:
    """(N,) sum_k log erfc(|z_k - mean_k| / (sqrt2 scale_k)) of latents (N, D), at most 0 (BSQ paper, eq. 8).

    Finite however far out a latent is: erfc itself is 0 in double precision from 38 standard deviations on.
    """
    # log erfc(u) = log 2 + log Phi(-sqrt2 u)
    return np.concatenate([
        (np.log(2) + log_ndtr(-np.abs(part - mean) / scale)).sum(1) for part in _parts(latents)
    ])  # fmt: skip


def likelihood_ratio_rows(
    latents: FloatArray, k: int, *, labeled: npt.NDArray[np.bool_], candidates: _Rows, refit: bool, floor: float
) -> tuple[_Rows, _Array]:
    """Again and again the candidate of the highest log q_pool - log q_annotated (BSQ paper, eq. 7).

    With nothing annotated, the first is that of the highest log q_pool. Around a single annotated item the pool's standard
    deviations are taken, since one item has none. Of equal rows, the one that comes first among the candidates.

    Args:
        latents: (N, D) finite, of the whole pool.
        labeled: (N,) the annotated ones.
        candidates: (M,) distinct rows that may be chosen, 1 <= k <= M.
        refit: picks count as annotated from then on; else the k highest by what is annotated now.
        floor: least standard deviation, > 0.

    Returns:
        (k,) chosen rows, first chosen first, and (k,) their log ratios at that time.
    """
    pool = DiagonalGaussian.fitted(latents)
    spread = pool.scale(floor)
    offered = latents[candidates].astype(np.float64)
    typical = log_tail(offered, pool.mean, spread)
    annotated = DiagonalGaussian.fitted(latents[labeled]) if labeled.any() else None

    def ratios() -> _Array:
        if annotated is None:
            return typical
        return typical - log_tail(offered, annotated.mean, spread if annotated.count == 1 else annotated.scale(floor))

    if not refit:
        scores = ratios()
        chosen = np.argsort(-scores, kind="stable")[:k]
        return candidates[chosen], scores[chosen]
    picked, found = np.empty(k, np.int64), np.empty(k)
    free = np.ones(len(candidates), bool)
    for turn in range(k):
        scores = np.where(free, ratios(), -np.inf)
        best = int(scores.argmax())
        picked[turn], found[turn], free[best] = best, scores[best], False
        latent = offered[best]
        annotated = DiagonalGaussian.fitted(latent[None]) if annotated is None else annotated.with_another(latent)
    return candidates[picked], found


def _parts(latents: FloatArray) -> list[FloatArray]:
    """Rows in parts of a bounded size, at least one."""
    return np.array_split(latents, max(1, -(-latents.size // _VALUES_AT_ONCE)))
