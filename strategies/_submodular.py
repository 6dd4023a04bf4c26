"""Facility location: rows whose similarities cover others, by lazy greedy, which equals greedy."""

import heapq
from typing import Any, Literal

import numpy as np

from loop.signals import FloatArray
from strategies._compiled import IntArray, compiled, finite_matrix
from strategies._distance import candidates_of
from strategies._similarity import similarity_kernel

_SUBMODLIB_BYTES = 60
"""Measured, of submodlib-py 0.0.3, for each entry of the kernel."""


def facility_location_mutual_information(
    kernel: FloatArray,
    k: int,
    *,
    eta: float = 1.0,
    signed: bool = False,
    backend: Literal["exact", "submodlib"] = "exact",
    memory_limit: int = 8 * 2**30,
) -> tuple[IntArray, FloatArray]:
    """Greedily maximise I(B; Q) = sum_{i in Q} max_{j in B} S_ij + eta sum_{j in B} max_{i in Q} S_ij over k rows B.

    Equal gains go to the lowest row. Needs nothing of the size of the kernel beside it.

    Args:
        kernel: S as (n, m), candidates by queries, finite.
        k: 1 <= k <= n.
        eta: weight of the second sum, at least 0. The larger, the more alike the picks are to queries, and to each other.
        signed: False takes negative similarities as 0, as the paper's runs did. True takes them as they are: I of no row
            is 0, the first row gains its sums, whatever their sign, and a later one what it adds.
        backend: "exact", or "submodlib" for comparison: the same picks, at 60 bytes a kernel entry; k < n; not signed.
        memory_limit: bytes that submodlib may take.

    Returns:
        rows (k,) in the order of the picks, and gains (k,), what each added to I.

    Raises:
        ValueError: a kernel that is not finite, an argument out of range, or what submodlib would not survive.

    Source: USIM, eq. (1); lazy greedy, Minoux 1978.
    """
    rule = "Facility-location mutual information"
    kernel, largest = finite_matrix(kernel, rule)
    if not 0 <= eta < np.inf:
        raise ValueError(f"{rule} needs eta of at least 0 and finite, got {eta}.")
    if backend not in ("exact", "submodlib"):
        raise ValueError(f"{rule} needs the backend to be exact or submodlib, got {backend!r}.")
    if backend == "exact":
        return _greedy(kernel, k, eta, float(kernel.min()) if signed else 0.0, rule)
    if signed or not 1 <= k < len(kernel) or largest > float(np.finfo(np.float32).max):
        raise ValueError(
            f"submodlib needs an unsigned float32 kernel and k between 1 and n - 1 ({len(kernel) - 1}), "
            f"got signed={signed}, a magnitude of {largest:.3g} and k={k}."
        )
    if kernel.size * _SUBMODLIB_BYTES > memory_limit:
        raise ValueError(
            f"submodlib would need {kernel.size * _SUBMODLIB_BYTES / 1e9:.3g} GB for a kernel of {kernel.shape}, "
            f"and the limit is {memory_limit / 1e9:.3g} GB; the exact backend needs none."
        )
    return _by_submodlib(np.maximum(kernel, 0), k, eta)


def maximum_cover(features: FloatArray, k: int, *, candidates: IntArray | None = None) -> tuple[IntArray, FloatArray]:
    """Greedily pick k rows that cover all rows: argmax_j sum_{i in U} max(cos(i, j), best_i), best_i = max of the picks.

    No similarity is clipped: with nothing picked, eq. (10) leaves sum_i cos(i, j), negative ones included. Equal gains go
    to the lowest row, but two that are each other's best cover gain the same sum in another order, and rounding decides.
    Needs a (M, N) kernel.

    Args:
        features: (N, D) finite, all rows to be covered.
        k: 1 <= k <= M.
        candidates: (M,) distinct rows that may be picked, such as the most uncertain; all by default.

    Returns:
        rows (k,) in the order of the picks, and gains (k,), what each added to the sum.

    Raises:
        ValueError: features that are not finite, or k or candidates out of range.

    Source: suggestive annotation (Yang et al. 2017) as in BSQ, eq. (9)-(10).
    """
    rows = candidates_of(candidates, np.ones(len(features), bool), k, "Maximum cover")
    kernel = similarity_kernel(features[rows], features, metric="cosine")
    picked, gains = _greedy(finite_matrix(kernel, "Maximum cover")[0], k, 0.0, -1.0, "Maximum cover")
    return rows[picked], gains


def _greedy(kernel: FloatArray, k: int, eta: float, level: float, rule: str) -> tuple[IntArray, FloatArray]:
    """Exact greedy with every query covered to `level` at the start, and gains as if that had been nothing.

    Starting from the lowest similarity, not from nothing, keeps every gain but the first, and lets none grow later: what
    lazy evaluation stands on.
    """
    if not 1 <= k <= len(kernel):
        raise ValueError(f"{rule} needs k between 1 and the number of candidates ({len(kernel)}), got {k}.")
    rows, gains = np.empty(k, np.int64), np.empty(k)
    _lazy_greedy(kernel, eta, np.full(kernel.shape[1], level, kernel.dtype), rows, gains)
    gains[0] += level * kernel.shape[1]
    return rows, gains


@compiled
def _lazy_greedy(kernel: Any, eta: Any, covered: Any, rows: Any, gains: Any) -> None:
    """Fill rows (k,) and gains (k,); `covered` (m,) ends as the maximum over the picks.

    A gain never grows, so an old one bounds it: only the row whose bound is highest is evaluated anew.
    """
    relevance = np.empty(len(kernel))
    heap = [(-np.inf, row) for row in range(len(kernel))]
    evaluated = np.full(len(kernel), -1)
    for pick in range(len(rows)):
        # Ties: the heap puts the lowest row first, and a bound that equals a gain is evaluated before it is passed over.
        while evaluated[heap[0][1]] < pick:
            row = heap[0][1]
            if evaluated[row] < 0:
                most = covered[0]
                for query in range(kernel.shape[1]):
                    most = max(most, kernel[row, query])
                relevance[row] = eta * most
            # The only place that sums a gain: sums made in two ways could differ in the last bit, and break a bound.
            total = 0.0
            for query in range(kernel.shape[1]):
                total += max(np.float64(kernel[row, query]) - np.float64(covered[query]), 0.0)
            heapq.heapreplace(heap, (-(total + relevance[row]), row))
            evaluated[row] = pick
        gain, row = heapq.heappop(heap)
        rows[pick], gains[pick] = row, -gain
        for query in range(kernel.shape[1]):
            covered[query] = max(covered[query], kernel[row, query])


def _by_submodlib(kernel: FloatArray, k: int, eta: float) -> tuple[IntArray, FloatArray]:
    """The same by submodlib's lazy greedy, which is exact and takes no seed."""
    # Slow to import, and wanted here only.
    from submodlib import FacilityLocationVariantMutualInformationFunction

    n, m = kernel.shape
    function = FacilityLocationVariantMutualInformationFunction(n, m, query_sijs=kernel, queryDiversityEta=eta)
    found = function.maximize(
        budget=k, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return np.array([row for row, _ in found], np.int64), np.array([gain for _, gain in found])
