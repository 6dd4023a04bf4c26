"""Typical rows: those in the middle of dense clusters that hold no label yet."""

import warnings

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray
from strategies._compiled import IntArray, finite_matrix
from strategies._distance import candidates_of
from strategies._similarity import unit_rows

_MOST_CLUSTERS = 500
_FULL_BATCH_CLUSTERS = 50
_BATCH = 5000
_SMALL = 5
_NEIGHBOURS = 20
_CLOSEST = 1e-5
"""Added to a mean distance, so that duplicates have a finite typicality."""


def typical_rows(
    features: FloatArray,
    k: int,
    *,
    labeled: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    candidates: IntArray | None = None,
    normalize: bool = False,
) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """Pick the most typical row of each cluster: those with the fewest labels first, of equals the largest.

    All rows are clustered into min(labelled + k, 500) by k-means. Passes over the clusters go on until k are picked, one
    of each a pass; clusters of 5 rows or fewer wait until the larger ones have nothing left. Equal sizes and equal
    typicalities go to the cluster with the lowest row, and to the lowest row.

    Args:
        features: (N, D) finite.
        k: 1 <= k <= number of candidates.
        labeled: (N,) rows with a label.
        candidates: (M,) rows that may be picked; all that are not labelled by default.
        normalize: bring every row to length 1 (a row of zeros stays) first, as the paper does with its features.

    Returns:
        rows (k,) in the order of the picks, and their typicality (k,), higher = more typical: 1 / (1e-5 + mean Euclidean
        distance to the min(20, half of them) nearest among its cluster's candidates that are left); 0 for the last one left.
        Of the cluster of each, how many rows it has (k,), and how many of them are labelled (k,).

    Raises:
        ValueError: features that are not finite, or k, labels or candidates out of range.

    Source: TypiClust (Hacohen et al. 2022), section 3 and its released code.
    """
    features, _ = finite_matrix(features, "TypiClust")
    if labeled.shape != (len(features),) or labeled.dtype != np.bool_:
        raise ValueError(f"TypiClust needs a mask ({len(features)},) of the labelled, got {labeled.shape}.")
    rows = candidates_of(candidates, ~labeled, k, "TypiClust")
    if normalize:
        features = unit_rows(features)
    clusters = _clusters(features, min(int(labeled.sum()) + k, _MOST_CLUSTERS), rng)
    size, labels = np.bincount(clusters), np.bincount(clusters[labeled], minlength=clusters.max() + 1)
    left = {cluster: rows[clusters[rows] == cluster] for cluster in range(len(size))}
    order = sorted(left, key=lambda cluster: (labels[cluster], -size[cluster]))
    picked: list[tuple[int, float, int]] = []
    for large in (True, False):
        waiting = [cluster for cluster in order if (size[cluster] > _SMALL) == large and len(left[cluster])]
        while waiting and len(picked) < k:
            for cluster in waiting[: k - len(picked)]:
                typicality = _typicality(features[left[cluster]])
                best = int(np.argmax(typicality))
                picked.append((int(left[cluster][best]), float(typicality[best]), cluster))
                left[cluster] = np.delete(left[cluster], best)
            waiting = [cluster for cluster in waiting if len(left[cluster])]
    found, values, of = zip(*picked, strict=True)
    chosen = np.array(of, np.int64)
    return np.array(found, np.int64), np.array(values), size[chosen], labels[chosen]


def _clusters(features: FloatArray, count: int, rng: np.random.Generator) -> IntArray:
    """The cluster (N,) of each row, numbered by their lowest rows; fewer than `count` where rows are duplicates."""
    # Imported here because it takes a second that no other strategy needs to pay.
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count, seed = min(count, len(features)), int(rng.integers(2**31))
    model = (
        KMeans(count, n_init=1, random_state=seed)
        if count <= _FULL_BATCH_CLUSTERS
        else MiniBatchKMeans(count, batch_size=_BATCH, n_init=1, random_state=seed)
    )
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit_predict(features)
    _, first, cluster = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[cluster]


def _typicality(features: FloatArray) -> FloatArray:
    if len(features) == 1:
        return np.zeros(1)
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(features) // 2), algorithm="brute").fit(features)
    distances: FloatArray = neighbours.kneighbors()[0]
    return np.asarray(1 / (_CLOSEST + distances.mean(axis=1)))
