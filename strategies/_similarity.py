"""Similarities of candidates to queries."""

from typing import Literal

import numpy as np

from loop.signals import FloatArray
from strategies._compiled import finite_matrix

_BLOCK_BYTES = 2**25


def similarity_kernel(
    candidates: FloatArray,
    queries: FloatArray,
    *,
    metric: Literal["cosine", "dot"] = "cosine",
    weights: FloatArray | None = None,
) -> FloatArray:
    """Similarity of each candidate to each query, (n, m) float32, made block by block; higher = more alike.

    Args:
        candidates: (n, D) finite.
        queries: (m, D) finite.
        metric: "dot" is g^T diag(w) q, "cosine" the same over both lengths under w: -1 to 1, and 0 for a row of length 0.
        weights: w (D,), finite and at least 0, such as 1 / (F + lambda) of the Fisher diagonal F; 1 by default.

    Raises:
        ValueError: an input or a similarity is not finite, a weight is below 0, or shapes or the metric do not fit.

    Source: USIM, eq. (2) cosine, eq. (4) Fisher kernel.
    """
    candidates, _ = finite_matrix(candidates, "A similarity kernel")
    queries, _ = finite_matrix(queries, "A similarity kernel")
    axes = candidates.shape[1]
    weight = np.ones(axes) if weights is None else np.asarray(weights, np.float64)
    if metric not in ("cosine", "dot") or queries.shape[1] != axes or weight.shape != (axes,):
        raise ValueError(
            f"A similarity kernel needs cosine or dot, and queries and weights of {axes} columns, "
            f"got {metric!r}, {queries.shape} and {weight.shape}."
        )
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("A similarity kernel needs weights that are finite and at least 0.")
    root = np.sqrt(weight)
    kernel = np.empty((len(candidates), len(queries)), np.float32)
    step = max(1, _BLOCK_BYTES // (8 * max(axes, len(queries))))
    with np.errstate(over="ignore", invalid="ignore"):
        right = _scaled(queries, root, metric).T
        for start in range(0, len(kernel), step):
            block = kernel[start : start + step]
            np.matmul(_scaled(candidates[start : start + step], root, metric), right, out=block)
            if not np.isfinite(block).all():
                row = start + int(np.argwhere(~np.isfinite(block))[0, 0])
                raise ValueError(f"A similarity kernel needs similarities within float32, got more in row {row}.")
            if metric == "cosine":
                np.clip(block, -1, 1, out=block)
    return kernel


def unit_rows(rows: FloatArray) -> FloatArray:
    """Rows (N, D) at length 1, in their own floating type; rows of zeros stay."""
    unit = np.array(rows)
    # The largest number first: lengths of huge and of tiny rows stay in range.
    for order in (np.inf, 2):
        length = np.linalg.norm(unit, order, axis=1, keepdims=True)
        np.divide(unit, length, out=unit, where=length > 0)
    return unit


def _scaled(rows: FloatArray, root: FloatArray, metric: str) -> FloatArray:
    """Rows times sqrt(w), of length 1 (or 0) for the cosine; in float64 up to the last step, so that no square overflows."""
    scaled = rows * root
    return (unit_rows(scaled) if metric == "cosine" else scaled).astype(np.float32)
