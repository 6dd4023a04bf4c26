"""Where a falling curve stops falling fast."""

import warnings

import numpy as np

from loop.signals import FloatArray

_SENSITIVITY = 10.0
_MULTIPLE = 5


def elbow(values: FloatArray) -> int | None:
    """Position of the elbow of falling values, or None when the curve has none.

    Args:
        values: (N,) finite, highest first.

    Raises:
        ValueError: the values are not finite, or rise.

    Source: Kneedle (Satopaa et al. 2011) with sensitivity 10 on a convex falling curve, as in USIM's released code.
    """
    if values.ndim != 1 or not np.isfinite(values).all() or (np.diff(values) > 0).any():
        raise ValueError(f"An elbow needs finite falling values (N,), got shape {values.shape}.")
    # Neither a line through two points nor a level one bends.
    if len(values) < 3 or values[0] == values[-1]:
        return None
    # Imported here because it brings matplotlib, which no other strategy needs.
    from kneed import KneeLocator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        knee = KneeLocator(range(len(values)), values, S=_SENSITIVITY, curve="convex", direction="decreasing").knee
    return None if knee is None else int(knee)


def query_size(uncertainties: FloatArray, budget: int) -> int:
    """How many items to draw into the query set: up to the elbow of the sorted uncertainties, at least 5 budgets, at most N.

    The paper takes the elbow for granted; a curve without one gets 5 budgets.

    Args:
        uncertainties: (N,) finite, in any order; N >= 1.
        budget: items to be selected in the end, at least 1.

    Raises:
        ValueError: an uncertainty is not finite, there is none, or the budget is below 1.

    Source: USIM, section 2 (elbow); the floor of 5 budgets is from its released code.
    """
    if len(uncertainties) == 0 or budget < 1:
        raise ValueError(f"A query size needs items and a budget, got {len(uncertainties)} and {budget}.")
    knee = elbow(np.sort(uncertainties)[::-1])
    return min(max(knee or 0, _MULTIPLE * budget), len(uncertainties))
