"""Is this label a label for this image? Checked before a byte of it is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datastore.volume_io import Header, read_volume
from loop.errors import BadInput

_AFFINE_TOLERANCE_MM = 1e-2
"""Viewers store affines as float32 and may round; a hundredth of a millimetre is far below a voxel."""
_MOST_CLASSES = 255
_MOST_COUNTED = 2**16


def read_label(
    path: Path, image: Header, values: Mapping[str, int], info: Sequence[Mapping[str, Any]] = ()
) -> npt.NDArray[np.uint8]:
    """The label's mask (I, J, K) in our values, if it fits the image.

    Args:
        values: {class name: voxel value}.
        info: the viewer's {"name", "idx"} pairs; where it numbers classes in its own way, voxels are mapped by name.

    Raises:
        BadInput: not an image, other shape or affine than the image, not finite, not integer, negative, or an unknown class.
    """
    voxels = read_volume(path, lambda header: _check_geometry(header, image)).array
    _check_voxels(voxels)
    return _named(voxels, values, info)


def _check_geometry(label: Header, image: Header) -> None:
    if label.shape != image.shape:
        raise BadInput(f"The label must have the image's shape {image.shape}, got {label.shape}.")
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*image.shape, 1]
    apart = float(np.abs((label.affine - image.affine) @ corners.T).max())
    if apart > max(_AFFINE_TOLERANCE_MM, 1e-3 * min(image.spacing)):
        raise BadInput(
            f"The label must have the image's position and orientation, its corners are {apart:.3g} mm away."
        )


def _check_voxels(voxels: npt.NDArray[Any]) -> None:
    if voxels.dtype.kind == "f":
        if not np.isfinite(voxels).all():
            raise BadInput("The label must hold whole numbers, got NaN or infinite voxels.")
        if (voxels != np.rint(voxels)).any():
            raise BadInput(f"The label must hold whole numbers, got {float(voxels[voxels != np.rint(voxels)][0]):g}.")
    if voxels.min() < 0:
        raise BadInput(f"The label must not be negative, got {voxels.min():g}.")


def _present(voxels: npt.NDArray[Any]) -> list[int]:
    """The values that occur, ascending; counting is much faster than the sort of np.unique."""
    largest = int(voxels.max())
    if largest > _MOST_COUNTED:
        return [largest]  # no label has such a class: one is enough to refuse it
    found: list[int] = np.flatnonzero(np.bincount(voxels.astype(np.intp).ravel())).tolist()
    return found


def _named(
    voxels: npt.NDArray[Any], values: Mapping[str, int], info: Sequence[Mapping[str, Any]]
) -> npt.NDArray[np.uint8]:
    """Voxels in our values: by the viewer's names where it gives them, as they are otherwise."""
    present = [value for value in _present(voxels) if value]
    theirs = _numbering(info, present) or {value: name for name, value in values.items()}
    known = ", ".join(f"{value} {name}" for name, value in values.items())
    mask = np.zeros(voxels.shape, np.uint8)
    for value in present:
        name = theirs.get(value)
        if name is None or name not in values:
            got = f"the value {value}" + (f" named {name[:100]!r}" if name else "")
            raise BadInput(f"The label must hold 0 (background) and {known}, got {got}.")
        mask[voxels == value] = values[name]
    return mask


def _numbering(info: Sequence[Mapping[str, Any]], present: Sequence[int]) -> dict[int, str]:
    """{voxel value: class name} of a viewer's label_info; {} where it gives none.

    The entries' own `idx`, unless voxels are present that it does not cover: Slicer counts hidden segments in `idx` but
    not in the voxels, which then follow the order of the entries.
    """
    if len(info) > _MOST_CLASSES:
        raise BadInput(f"label_info must name at most {_MOST_CLASSES} classes, got {len(info)}.")
    for entry in info:
        named = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
        if not named or not isinstance(entry.get("idx", 0), int):
            raise BadInput(f'label_info must be a list of {{"name": text, "idx": number}}, got {str(entry)[:100]}.')
    by_index = {int(entry["idx"]): entry["name"] for entry in info if "idx" in entry}
    if set(present) <= set(by_index):
        return by_index
    return {position: entry["name"] for position, entry in enumerate(info, 1)}


def voxels_of(mask: npt.NDArray[np.uint8], axis: int, slices: Sequence[int], n_classes: int) -> list[list[int]]:
    """Of each of the slices, the voxels of each class, background first."""
    if not slices:
        return []
    taken = np.moveaxis(mask, axis, 0)[list(slices)].reshape(len(slices), -1)
    # One count for all: each slice has its own range of numbers.
    numbered = taken + n_classes * np.arange(len(slices))[:, None]
    found: list[list[int]] = (
        np.bincount(numbered.ravel(), minlength=len(slices) * n_classes).reshape(-1, n_classes).tolist()
    )
    return found
