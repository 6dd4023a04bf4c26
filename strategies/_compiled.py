"""Loops that are compiled at their first call and kept on disk, and the arrays that they read."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from loop.signals import FloatArray

IntArray = npt.NDArray[np.int64]
Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """A loop as machine code that lets other threads run.

    Sums may be reordered, so that they vectorise; infinities and NaN keep their meaning. The order does not depend on
    the values: equal rows give equal sums, to the last bit, and smaller terms never a larger sum.
    """
    decorate = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    made: Loop = decorate(loop)
    return made


def finite_matrix(matrix: FloatArray, rule: str, used: IntArray | None = None) -> tuple[FloatArray, float]:
    """A matrix as compiled loops read it, and its largest magnitude: float32 or float64, C order, read-only.

    Not copied if it is of such a type and order already. Always read-only, so that a loop is compiled once.

    Args:
        rule: who asks, for the messages.
        used: rows that will be read, all by default. Others may hold anything.

    Raises:
        ValueError: not two-dimensional, empty, not of a floating type, or not finite; `rule` is named.
    """
    if matrix.ndim != 2 or 0 in matrix.shape or not np.issubdtype(matrix.dtype, np.floating):
        raise ValueError(f"{rule} needs a matrix of a floating type, got {matrix.dtype} {matrix.shape}.")
    # Minimum and maximum pass a NaN on, and need no temporary.
    largest = max(float(matrix.max()), -float(matrix.min()))
    if not np.isfinite(largest):
        rows = np.arange(len(matrix)) if used is None else np.sort(used)
        bad = np.argwhere(~np.isfinite(matrix[rows]))
        if len(bad):
            row, column = rows[bad[0, 0]], bad[0, 1]
            raise ValueError(f"{rule} needs finite numbers, got {matrix[row, column]} in row {row}, column {column}.")
        largest = float(np.abs(matrix[rows]).max())
    kind = matrix.dtype if matrix.dtype in (np.float32, np.float64) else np.float32
    view = np.ascontiguousarray(matrix, kind).view()
    view.flags.writeable = False
    return view, largest
