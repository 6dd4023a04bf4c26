"""What can be asked for: the one index space that every array is aligned to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

WHOLE = -1
"""The slice number that stands for "the whole volume" in arrays and in the store."""


@dataclass(frozen=True)
class Item:
    """One thing an annotator can be asked for: a slice of an image, or the whole image."""

    image_id: str
    slice: int | None = None

    def __str__(self) -> str:
        return self.image_id if self.slice is None else f"{self.image_id} slice {self.slice}"


class ItemTable(Sequence[Item]):
    """Items made on access from two arrays, so that a pool of a million slices holds no million objects.

    Args:
        image_ids: the image of each volume number.
        volume: (N,) volume number of each row.
        position: (N,) slice of each row, WHOLE for the whole volume.
    """

    def __init__(self, image_ids: Sequence[str], volume: IntArray, position: IntArray) -> None:
        self.image_ids, self._volume, self._position = image_ids, volume, position

    def __len__(self) -> int:
        return len(self._volume)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> list[Item]: ...
    def __getitem__(self, row: int | slice) -> Item | list[Item]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        position = int(self._position[row])
        return Item(self.image_ids[int(self._volume[row])], None if position == WHOLE else position)


@dataclass(frozen=True)
class Pool:
    """Everything that could be labelled; row i of any array describes items[i].

    Attributes:
        items: N items.
        labeled: (N,) already annotated.
        held: (N,) must not be asked for now: leased to somebody, skipped, or unreadable.
        volume: (N,) number of the image the row belongs to.
        patient: (N,) number of the patient; two volumes of one patient share it.
        position: (N,) slice index along the slice axis, WHOLE for a whole volume.
        voxels: (C,) annotated voxels of each class in all labels so far, background first; empty if nobody counted.
    """

    items: ItemTable
    labeled: BoolArray
    held: BoolArray
    volume: IntArray
    patient: IntArray
    position: IntArray
    voxels: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for name in ("labeled", "held", "volume", "patient", "position"):
            array = getattr(self, name)
            if array.shape != (len(self.items),):
                raise ValueError(
                    f"Pool.{name} must have shape ({len(self.items)},), one value an item, got {array.shape}."
                )

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def candidates(self) -> IntArray:
        """(M,) rows that may be asked for, ascending."""
        return np.flatnonzero(~(self.labeled | self.held))

    @cached_property
    def known(self) -> IntArray:
        """(K,) rows that signals are computed for: candidates and labelled ones, ascending."""
        return np.flatnonzero(self.labeled | ~self.held)

    @cached_property
    def candidates_among_known(self) -> IntArray:
        """(M,) places of the candidates in `known`."""
        return np.searchsorted(self.known, self.candidates)
