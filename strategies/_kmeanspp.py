"""k-means++ seeding: rows drawn in proportion to their squared distance to those drawn before."""

from typing import Literal

import numpy as np

from loop.signals import FloatArray
from strategies._compiled import IntArray
from strategies._distance import candidates_of, lower_to, potentials, rows_of


def kmeans_pp(
    features: FloatArray,
    k: int,
    rng: np.random.Generator,
    *,
    first: Literal["max_norm", "random"] = "max_norm",
    local_trials: int = 1,
    candidates: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Draw k rows that are far from each other, by D^2 sampling.

    A row that was drawn is never drawn again. Where all that are left lie on one that was drawn, they are drawn uniformly.

    Args:
        features: (N, D), finite where a candidate.
        k: 1 <= k <= number of candidates.
        first: "max_norm", the largest Euclidean norm (the lowest row of equals; BADGE), or "random", uniform.
        local_trials: draws a pick; of several, the one that leaves the smallest sum of squared distances is kept (the first
            of equals), as scikit-learn does with 2 + floor(ln k). 1 is plain D^2 sampling.
        candidates: (M,) rows that may be drawn; all by default. Only they count.

    Returns:
        rows (k,), and the squared distance (k,) of each to the nearest of those drawn before it; of the first, its squared
        norm.

    Raises:
        ValueError: features that are not finite, or an argument out of range.

    Source: Arthur & Vassilvitskii 2007; the first row and its use on gradients, Ash et al. 2020, algorithm 1.
    """
    rows = candidates_of(candidates, np.ones(len(features), bool), k, "k-means++")
    features = rows_of(features, "k-means++", rows)
    if first not in ("max_norm", "random") or local_trials < 1:
        raise ValueError(
            "k-means++ needs first to be max_norm or random, and at least one local trial, "
            f"got {first!r} and {local_trials}."
        )
    nearest = np.full(len(rows), np.inf, features.dtype)
    lower_to(features, rows, np.zeros((1, features.shape[1]), features.dtype), nearest)
    place = int(np.argmax(nearest)) if first == "max_norm" else int(rng.integers(len(rows)))
    picked, squares = np.empty(k, np.int64), np.empty(k)
    picked[0], squares[0] = rows[place], nearest[place]
    nearest[:] = np.inf
    lower_to(features, rows, features[rows[place : place + 1]], nearest)
    left = np.ones(len(rows), bool)
    left[place] = False
    for pick in range(1, k):
        places = _draw(nearest, left, local_trials, rng)
        lowered = np.empty((len(places), len(rows)), features.dtype)
        potentials(features, rows, features[rows[places]], nearest, lowered)
        best = int(np.argmin(lowered.sum(axis=1, dtype=np.float64))) if len(places) > 1 else 0
        picked[pick], squares[pick] = rows[places[best]], nearest[places[best]]
        nearest, left[places[best]] = lowered[best], False
    return picked, squares


def _draw(nearest: FloatArray, left: np.ndarray, count: int, rng: np.random.Generator) -> IntArray:
    """Places (count,) in proportion to `nearest`, which is 0 where a row was drawn; uniform among the left if all are 0."""
    total = np.cumsum(nearest, dtype=np.float64)
    if total[-1] == 0:
        return np.flatnonzero(left)[rng.integers(left.sum(), size=count)]
    # "right" passes over rows of no weight; the last row of any weight holds for a product that was rounded up.
    places = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    drawn: IntArray = np.minimum(places, np.searchsorted(total, total[-1:]))
    return drawn
