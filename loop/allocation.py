"""Memory between a network's layers: kept by the process instead of given back to the system at every layer."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(3) in glibc."""
_KEPT_BYTES = 512 << 20
_LARGEST_IN_HEAP = 32 << 20
"""The most that glibc accepts."""


def keep_freed_memory() -> None:
    """Let malloc reuse the pages of tensors that were freed; does nothing where the C library is not glibc.

    By default each tensor of some megabytes is mapped anew, and the system clears its pages at the first touch: on the CPU a
    third of the time of the default network's forward pass.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
