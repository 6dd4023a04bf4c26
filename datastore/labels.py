"""Is this label a label for this image? Checked before a byte of it is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datastore.volume_io import Header, read_volume
from loop.config import BACKGROUND_STROKES
from loop.errors import BadInput

_AFFINE_TOLERANCE_MM = 1e-2
"""Viewers store affines as float32 and may round; a hundredth of a millimetre is far below a voxel."""
_MOST_CLASSES = 255
_MOST_COUNTED = 2**16
_BACKGROUND = {"background", BACKGROUND_STROKES, "background_scribbles"}
_UNLABELED = {"unlabeled", "unlabelled"}
_FOREGROUND = "foreground_scribbles"


def read_label(
    path: Path,
    image: Header,
    values: Mapping[str, int],
    info: Sequence[Mapping[str, Any]] = (),
    unlabeled: int | None = None,
) -> npt.NDArray[np.uint8]:
    """The label's mask (I, J, K) in our values, if it fits the image.

    Scribbles come in two forms. With the value `unlabeled` in it, 0 is a stroke of background. With a segment of background
    in `info`, as viewers draw it, 0 is a voxel without a stroke. Neither: every voxel has its class.

    Args:
        values: {class name: voxel value}.
        info: the viewer's {"name", "idx"} pairs; where it numbers classes in its own way, voxels are mapped by name.
        unlabeled: value of voxels without a stroke, in the result too; None refuses scribbles.

    Raises:
        BadInput: not an image, other shape or affine than the image, not finite, not integer, negative, or an unknown class.
    """
    voxels = read_volume(path, lambda header: _check_geometry(header, image)).array
    _check_voxels(voxels)
    return in_our_values(voxels, values, info, unlabeled)


def in_our_values(
    voxels: npt.NDArray[Any], values: Mapping[str, int], info: Sequence[Mapping[str, Any]], unlabeled: int | None
) -> npt.NDArray[np.uint8]:
    """Whole numbers that are not negative, mapped as `read_label` says; raises BadInput for one that is no class."""
    return _named(voxels, values, info) if unlabeled is None else _strokes(voxels, values, info, unlabeled)


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
    # In the order of memory: files lie in Fortran's, and any other order copies them voxel by voxel.
    found: list[int] = np.flatnonzero(np.bincount(voxels.ravel(order="K").astype(np.intp, copy=False))).tolist()
    return found


def _mapped(voxels: npt.NDArray[Any], ours: Mapping[int, int], background: int) -> npt.NDArray[np.uint8]:
    """Each voxel's value replaced by ours; 0 by `background`."""
    if background == 0 and all(value == number for value, number in ours.items()):
        return voxels.astype(np.uint8)
    table = np.full(max(ours, default=0) + 1, background, np.uint8)
    for value, number in ours.items():
        table[value] = number
    found: npt.NDArray[np.uint8] = table.take(voxels if voxels.dtype.kind in "iu" else voxels.astype(np.intp))
    return found


def _named(
    voxels: npt.NDArray[Any], values: Mapping[str, int], info: Sequence[Mapping[str, Any]]
) -> npt.NDArray[np.uint8]:
    """Voxels in our values: by the viewer's names where it gives them, as they are otherwise."""
    present = [value for value in _present(voxels) if value]
    theirs = _numbering(info, present) or {value: name for name, value in values.items()}
    ours: dict[int, int] = {}
    for value in present:
        name = theirs.get(value)
        if name is None or name not in values:
            hint = (
                " Scribbles are taken with --conf supervision scribble."
                if value == len(values) + 1 or name in _BACKGROUND | _UNLABELED
                else ""
            )
            raise _wrong(value, name, f"0 (background) and {_listed(values)}", hint)
        ours[value] = values[name]
    return _mapped(voxels, ours, 0)


def _strokes(
    voxels: npt.NDArray[Any], values: Mapping[str, int], info: Sequence[Mapping[str, Any]], unlabeled: int
) -> npt.NDArray[np.uint8]:
    """As `_named`, with strokes of background as 0 and voxels without a stroke as `unlabeled`, in either form."""
    present = [value for value in _present(voxels) if value]
    given = {entry["name"] for entry in info if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)}
    drawn = bool(given & _BACKGROUND)
    numbered = {entry.get("idx") for entry in info if isinstance(entry, Mapping)}
    theirs = _numbering(info, [value for value in present if drawn or value != unlabeled or value in numbered])
    theirs = theirs or {value: name for name, value in values.items()}
    numbers = {**values, **dict.fromkeys(_BACKGROUND, 0), **dict.fromkeys(_UNLABELED, unlabeled)}
    if len(values) == 1:
        numbers[_FOREGROUND] = 1
    ours: dict[int, int] = {}
    for value in present:
        name = theirs.get(value, "unlabeled" if value == unlabeled and not drawn else None)
        if name is None or name not in numbers:
            hint = " Draw each class in its own segment." if name == _FOREGROUND else ""
            raise _wrong(value, name, f"0 (background), {_listed(values)} and {unlabeled} unlabelled", hint)
        ours[value] = numbers[name]
    return _mapped(voxels, ours, unlabeled if drawn else 0)


def _listed(values: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in values.items())


def _wrong(value: int, name: str | None, right: str, hint: str) -> BadInput:
    got = f"the value {value}" + (f" named {name[:100]!r}" if name else "")
    return BadInput(f"The label must hold {right}, got {got}.{hint}")


def with_strokes(mask: npt.NDArray[np.uint8], axis: int, unlabeled: int) -> list[int]:
    """The slices that have a stroke."""
    others = tuple(each for each in range(3) if each != axis)
    found: list[int] = np.flatnonzero((mask != unlabeled).any(axis=others)).tolist()
    return found


def as_viewers_draw(mask: npt.NDArray[np.uint8], unlabeled: int) -> npt.NDArray[np.uint8]:
    """The other form of scribbles: 0 where nobody drew, and `unlabeled` for strokes of background."""
    swap = np.arange(256, dtype=np.uint8)
    swap[[0, unlabeled]] = unlabeled, 0
    found: npt.NDArray[np.uint8] = swap[mask]
    return found


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
    """Of each of the slices, the annotated voxels of each class, background first."""
    by_slice = np.moveaxis(mask, axis, 0)
    # A slice at a time: counting turns every voxel into eight bytes first.
    counts = (np.bincount(by_slice[index].ravel(order="K"), minlength=n_classes)[:n_classes] for index in slices)
    return [count.tolist() for count in counts]
