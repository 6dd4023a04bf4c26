"""Random noise on scores, so that a batch is not the same item many times."""

import numpy as np

from loop.signals import FloatArray


def power_noise(scores: FloatArray, beta: float, rng: np.random.Generator) -> FloatArray:
    """log(score) + Gumbel(0, 1 / beta): the top k of it is a draw of k without replacement in proportion to score^beta.

    A score of 0 has no logarithm and must never be drawn before a positive one. Such items, and those below 0 by rounding,
    get distinct finite numbers below all others, in random order.

    Args:
        scores: (N,) finite, higher = more wanted, 0 = not at all.
        beta: above 0; the larger, the less noise.

    Returns:
        (N,) float64, finite, higher = more wanted.

    Raises:
        ValueError: a score is not finite, or beta is not above 0 and finite.

    Source: Kirsch et al. 2023, section 4 (the Gumbel trick); 1 / beta as in nnActive.
    """
    if not 0 < beta < np.inf:
        raise ValueError(f"Power noise needs beta above 0 and finite, got {beta}.")
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"Power noise needs finite scores, got {scores[index]} at index {index}.")
    # Drawn for all, so that one item's score does not move the noise of the next.
    gumbel, order = rng.gumbel(0, 1 / beta, len(scores)), rng.random(len(scores))
    positive = scores > 0
    noised = gumbel + np.log(scores, out=np.zeros(len(scores)), where=positive, dtype=np.float64)
    floor = noised[positive].min() if positive.any() else 0.0
    noised[~positive] = floor - (1 + order[~positive]) * max(1, abs(floor))
    return noised
