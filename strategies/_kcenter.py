"""k-centre greedy: the row furthest from everything labelled, again and again."""

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray
from strategies._compiled import IntArray
from strategies._distance import candidates_of, lower_to, rows_of

_CENTRE_BYTES = 2**18
"""Of labelled rows at a time: they stay in a core's cache while all rows pass by."""


def k_center_greedy(
    features: FloatArray,
    k: int,
    *,
    labeled: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    candidates: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Cover the rows by k more centres: each pick is the candidate furthest (Euclidean) from the labelled and the picked.

    Equal distances go to the lowest row. No row is picked twice, even when all that are left lie on a centre. A pick reads
    the features once; a labelled row costs as much arithmetic as a pick.

    Args:
        features: (N, D), finite where labelled or a candidate.
        k: 1 <= k <= number of candidates.
        labeled: (N,) the centres to begin with. When there is none, the first pick is a random candidate.
        candidates: (M,) rows that may be picked; all that are not labelled by default. Only they are to be covered.

    Returns:
        rows (k,) and the distance (k,) of each to its nearest centre when it was picked. Distances never grow. A random
        first row, which has no centre, gets the distance of the candidate furthest from it.

    Raises:
        ValueError: features that are not finite, or k, labels or candidates out of range.

    Source: Sener & Savarese 2018, algorithm 1.
    """
    if labeled.shape != (len(features),) or labeled.dtype != np.bool_:
        raise ValueError(
            f"k-centre greedy needs a mask ({len(features)},) of the labelled, got {labeled.dtype} {labeled.shape}."
        )
    rows = candidates_of(candidates, ~labeled, k, "k-centre greedy")
    features = rows_of(features, "k-centre greedy", np.concatenate([rows, np.flatnonzero(labeled)]))
    nearest = np.full(len(rows), np.inf, features.dtype)
    picked, distances = np.empty(k, np.int64), np.empty(k)
    if labeled.any():
        centres = features[labeled]
        step = max(1, _CENTRE_BYTES // centres[0].nbytes)
        for start in range(0, len(centres), step):
            lower_to(features, rows, centres[start : start + step], nearest)
        place = int(np.argmax(nearest))
    else:
        place = int(rng.integers(len(rows)))
    for pick in range(k):
        picked[pick], distances[pick] = rows[place], nearest[place]
        lower_to(features, rows, features[rows[place : place + 1]], nearest)
        if pick == 0 and not labeled.any():
            distances[0] = nearest.max()
        # Below every distance, and it stays there.
        nearest[place] = -1
        place = int(np.argmax(nearest))
    return picked, np.sqrt(distances)
