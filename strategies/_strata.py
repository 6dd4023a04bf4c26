"""A budget split among strata, such as the classes of a segmentation."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray
from strategies._topk import top_k

REST = -1
"""The stratum of what the common ranking picked."""


def split_evenly(budget: int, strata: int) -> list[int]:
    """How many each stratum gets: equal numbers, one more for the first ones where it does not divide.

    Raises:
        ValueError: budget below 0, or fewer than one stratum.
    """
    if budget < 0 or strata < 1:
        raise ValueError(f"A budget of 0 or more is split among 1 or more strata, got {budget} among {strata}.")
    each, more = divmod(budget, strata)
    return [each + (stratum < more) for stratum in range(strata)]


def stratified_top_k(
    strata: Sequence[FloatArray], rest: FloatArray, k: int, rng: np.random.Generator, *, share: float = 0.66
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give a share of k to strata that rank all items, each by its own scores, and what is left to a common ranking.

    Strata take turns, each its highest item that none has taken; chance decides whose turn is first, and so who gets one
    more where the share does not divide. Equal scores are in random order.

    Args:
        strata: of each stratum, scores (N,), finite, higher = more wanted. No stratum: `rest` picks all.
        rest: (N,) the common scores.
        k: 1 <= k <= N.
        share: of k that goes to the strata, 0 to 1, rounded to whole items.

    Returns:
        items (k,) in the order in which they were taken, and the stratum (k,) that took each; REST for the common ranking.

    Raises:
        ValueError: a score is not finite, lengths differ, or k or share is out of range.

    Source: ClaSP PE (Luth et al. 2026), class-stratified querying.
    """
    n = len(rest)
    if not 0 <= share <= 1 or any(len(scores) != n for scores in strata):
        raise ValueError(
            f"Strata need scores of {n} items and a share from 0 to 1, got {[len(s) for s in strata]} and {share}."
        )
    turns = rng.permutation(len(strata))
    quotas = split_evenly(round(share * k), len(strata)) if len(strata) else []
    # Everyone before may have taken what a ranking wants, so k of each are enough.
    rankings = [iter(top_k(strata[stratum], k, rng)) for stratum in turns]
    common = iter(top_k(rest, k, rng))
    taken: dict[int, int] = {}
    for lap in range(max(quotas, default=0)):
        for stratum, quota, ranking in zip(turns, quotas, rankings, strict=True):
            if lap < quota:
                taken[next(int(item) for item in ranking if item not in taken)] = int(stratum)
    while len(taken) < k:
        taken[next(int(item) for item in common if item not in taken)] = REST
    return np.array(list(taken), np.int64), np.array(list(taken.values()), np.int64)
