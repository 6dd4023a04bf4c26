"""The k highest of an array, ties broken by a seeded generator."""

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray


def top_k(scores: FloatArray, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices (k,) of the highest scores, highest first; equal scores in random order.

    Args:
        scores: (N,) finite.
        k: 1 <= k <= N.

    Raises:
        ValueError: a score is not finite, or k is out of range.
    """
    if not 1 <= k <= len(scores):
        raise ValueError(f"k must be between 1 and the number of scores ({len(scores)}), got {k}.")
    if not np.isfinite(scores).all():
        raise ValueError(
            f"Scores must be finite, got {scores[~np.isfinite(scores)][0]} at index {np.flatnonzero(~np.isfinite(scores))[0]}."
        )
    # Only what reaches the k-th place is sorted; shuffling it first makes the stable sort break ties at random.
    reach = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    rng.shuffle(reach)
    return reach[np.argsort(-scores[reach], kind="stable")[:k]]
