"""Squared Euclidean distances that never cancel: differences first, then squares, in one read of the rows.

|x|^2 - 2xy + |y|^2 would be a matrix product, but it loses every digit for near-duplicates of large norm, which then look
like strangers or give a negative square.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray
from strategies._compiled import IntArray, compiled, finite_matrix

_SQUARABLE = {np.dtype(np.float32): (1e-12, 1e15), np.dtype(np.float64): (0.0, 1e150)}
"""Largest magnitudes whose squared differences stay inside the type's range, and are no zeros."""


def rows_of(features: FloatArray, rule: str, used: IntArray) -> FloatArray:
    """Features (N, D) as the loops read them: see `finite_matrix`. Float32 whose squares overflow or vanish become float64.

    Raises:
        ValueError: not a matrix of a floating type, or a used row not finite or above 1e150; `rule` is named.
    """
    view, largest = finite_matrix(features, rule, used)
    low, high = _SQUARABLE[view.dtype]
    if largest and not low < largest < high:
        view, _ = finite_matrix(view.astype(np.float64), rule, used)
    if largest > _SQUARABLE[np.dtype(np.float64)][1]:
        raise ValueError(f"{rule} needs features whose squares are finite, got a magnitude of {largest:.3g}.")
    return view


def candidates_of(candidates: IntArray | None, free: npt.NDArray[np.bool_], k: int, rule: str) -> IntArray:
    """The rows that may be picked, ascending: `candidates`, or all that are `free`.

    Raises:
        ValueError: a candidate is not free, out of range or there twice, or k is not between 1 and their number.
    """
    rows = np.flatnonzero(free) if candidates is None else np.sort(np.asarray(candidates, np.int64))
    outside = len(rows) and (rows[0] < 0 or rows[-1] >= len(free))
    if outside or not free[rows].all() or (np.diff(rows) == 0).any():
        raise ValueError(f"{rule} needs candidates that are distinct unlabelled rows below {len(free)}.")
    if not 1 <= k <= len(rows):
        raise ValueError(f"{rule} needs k between 1 and the number of candidates ({len(rows)}), got {k}.")
    return rows


@compiled
def lower_to(features: Any, rows: Any, centres: Any, nearest: Any) -> None:
    """Lower nearest (M,) to the squared distance of features[rows] (M, D) to the closest of centres (T, D)."""
    for place in range(len(rows)):
        row, least = rows[place], nearest[place]
        for centre in range(len(centres)):
            total = features.dtype.type(0)
            for axis in range(features.shape[1]):
                difference = features[row, axis] - centres[centre, axis]
                total += difference * difference
            least = min(least, total)
        nearest[place] = least


@compiled
def potentials(features: Any, rows: Any, centres: Any, nearest: Any, lowered: Any) -> None:
    """Fill lowered (T, M): what `lower_to` would make of `nearest` for each of centres (T, D) alone."""
    for place in range(len(rows)):
        row = rows[place]
        for centre in range(len(centres)):
            total = features.dtype.type(0)
            for axis in range(features.shape[1]):
                difference = features[row, axis] - centres[centre, axis]
                total += difference * difference
            lowered[centre, place] = min(nearest[place], total)
