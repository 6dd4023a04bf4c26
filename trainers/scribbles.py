"""What strokes say about the voxels that they do not touch."""

import numpy as np
import numpy.typing as npt

from models.preprocess import IGNORED


def with_outside(classes: npt.NDArray[np.uint8], axis: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A copy with some more background: of each slice, voxels drawn at random outside what its strokes enclose.

    People draw background around a structure, and nowhere near the rim of the image; a network that never hears of what
    is far away calls it anything. As many voxels are drawn as the slice's strokes of background have, so that those far
    away, which are many and easy, do not drown the strokes. Outside means outside the box of the strokes of background,
    which must hold the box of the slice's other strokes; where it does not, or where there is none, nothing changes.

    Args:
        classes: (I, J, K) class of each voxel, or IGNORED where there is no stroke.
        axis: the slice axis.
    """
    found, rng = classes.copy(), np.random.default_rng(seed)
    for here in np.moveaxis(found, axis, 0):
        ground, others = _box(here == 0), _box((here != 0) & (here != IGNORED))
        if ground is None or (others is not None and not _holds(ground, others)):
            continue
        outside = np.ones(here.shape, bool)
        outside[tuple(slice(first, last + 1) for first, last in ground)] = False
        places = np.argwhere(outside)
        drawn = rng.choice(len(places), min(len(places), int((here == 0).sum())), replace=False)
        here[tuple(places[drawn].T)] = 0
    return found


def _box(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...] | None:
    """(first, last) along each axis of the voxels in the mask; None if there are none."""
    lines = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in range(2)]
    return tuple((int(line[0]), int(line[-1])) for line in lines) if len(lines[0]) else None


def _holds(outer: tuple[tuple[int, int], ...], inner: tuple[tuple[int, int], ...]) -> bool:
    return all(a <= c and d <= b for (a, b), (c, d) in zip(outer, inner, strict=True))
