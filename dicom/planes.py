"""The single images that a DICOM instance holds, with their place in space; nothing is taken for granted, no pixel is read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from loop.errors import BadInput

Vector = npt.NDArray[np.float64]

_MOST_PIXELS = 1 << 28
"""Of one image; no scanner makes larger ones, and a compressed one could claim anything."""
_MOST_FRAMES = 1 << 16
_GREY = ("MONOCHROME1", "MONOCHROME2")


class NoDecoder(BadInput):
    """The pixels are in a transfer syntax that cannot be read here; an archive may be able to give them in another."""


@dataclass(frozen=True)
class Plane:
    """One image of an instance.

    Attributes:
        instance: the whole instance. index: the image's number in it, from 0.
        frame: its number from 1; 0 where the instance is not a multi-frame one.
        position: (3,) LPS mm of the first voxel. along_row, along_column: (3,) unit vectors of growing column and row number.
        spacing: mm between rows, between columns.
        thickness: mm from one image to the next as the header says, for an image without a neighbour.
        slope, intercept: stored value -> value.
    """

    instance: Dataset
    index: int
    frame: int
    position: Vector
    along_row: Vector
    along_column: Vector
    spacing: tuple[float, float]
    thickness: float
    slope: float
    intercept: float

    @property
    def sop_uid(self) -> str:
        return str(self.instance.SOPInstanceUID)

    @property
    def size(self) -> tuple[int, int]:
        """Rows, columns."""
        return int(self.instance.Rows), int(self.instance.Columns)


def read_instance(path: Path) -> Dataset:
    """An instance as it is in a file.

    Raises:
        BadInput: not DICOM, or cut off.
    """
    try:
        return pydicom.dcmread(path)
    # pydicom raises whatever its parser meets; all of it means that the file is not what it should be.
    except Exception as error:  # noqa: BLE001
        raise BadInput(f"an instance could not be read as DICOM: {str(error)[:200] or type(error).__name__}") from None


def planes_of(instance: Dataset) -> Iterator[Plane]:
    """The images of an instance.

    Raises:
        BadInput: it holds no grey images with a place in space, or other pixels than it claims.
        NoDecoder: its transfer syntax is not known here.
    """
    name = _name(instance)
    try:
        frames = _frames(instance, name)
        _check_pixels(instance, frames, name)
        groups = instance.get("PerFrameFunctionalGroupsSequence")
        if groups is None:
            if frames > 1:
                raise BadInput(f"{name} has {frames} frames without geometry (no functional groups).")
            yield _plane(instance, [instance], 0, 0, name)
            return
        if len(groups) != frames:
            raise BadInput(f"{name} has {frames} frames, but geometry for {len(groups)}.")
        shared = list(instance.get("SharedFunctionalGroupsSequence") or [])
        for index, group in enumerate(groups):
            yield _plane(instance, [group, *shared], index, index + 1, f"{name}, frame {index + 1},")
    except BadInput:
        raise
    # An element may hold anything, such as text where a number belongs; it is converted when it is looked at.
    except Exception as error:  # noqa: BLE001
        raise BadInput(f"{name} has a damaged header: {str(error)[:200] or type(error).__name__}") from None


def _name(instance: Dataset) -> str:
    return f"instance {str(instance.get('SOPInstanceUID', '(without UID)'))[:70]}"


def _number(instance: Dataset, keyword: str, name: str) -> int:
    value = instance.get(keyword)
    if value is None:
        raise BadInput(f"{name} has no {keyword}.")
    return int(value)


def _frames(instance: Dataset, name: str) -> int:
    frames = int(instance.get("NumberOfFrames") or 1)
    if not 1 <= frames <= _MOST_FRAMES:
        raise BadInput(f"{name} must have 1 to {_MOST_FRAMES} frames, got {frames}.")
    return frames


def _check_pixels(instance: Dataset, frames: int, name: str) -> None:
    """Raise unless the pixels are what the header says, before anything is allocated for them."""
    rows, columns, samples, allocated = (
        _number(instance, keyword, name) for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    )
    if "PixelData" not in instance:
        raise BadInput(f"{name} claims {rows} x {columns} pixels and has none.")
    if samples != 1 or instance.get("PhotometricInterpretation") not in _GREY:
        raise BadInput(
            f"{name} must be a grey image, got {samples} samples of {instance.get('PhotometricInterpretation')}."
        )
    if allocated not in (8, 16, 32):
        raise BadInput(f"{name} must have 8, 16 or 32 bits a pixel, got {allocated}.")
    if not 1 <= rows * columns <= _MOST_PIXELS:
        raise BadInput(f"{name} must have 1 to {_MOST_PIXELS} pixels, claims {rows} x {columns}.")
    syntax = getattr(instance.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        raise BadInput(f"{name} does not say its transfer syntax.")
    if not _decodes(syntax):
        # Of a private one an archive cannot know what the pixels mean, though it may well give them another name.
        if UID(syntax).is_private:
            raise BadInput(f"{name} has pixels in the private transfer syntax {syntax}.")
        raise NoDecoder(f"{name} has pixels in the transfer syntax {UID(syntax).name}, which cannot be read here.")
    if UID(syntax).is_encapsulated:
        return
    expected = rows * columns * frames * (allocated // 8)
    got = len(instance.PixelData)
    if got not in (expected, expected + expected % 2):
        raise BadInput(f"{name} must have {expected} bytes of pixels ({rows} x {columns} x {frames}), got {got}.")


def _decodes(syntax: str) -> bool:
    try:
        return bool(get_decoder(UID(syntax)).is_available)
    except NotImplementedError:
        return False


def _plane(instance: Dataset, places: Sequence[Dataset], index: int, frame: int, name: str) -> Plane:
    """The image whose geometry is in the first of the places that has it."""
    position = _numbers(
        _found(places, "PlanePositionSequence", "ImagePositionPatient"), 3, f"{name} has no ImagePositionPatient."
    )
    orientation = _numbers(
        _found(places, "PlaneOrientationSequence", "ImageOrientationPatient"),
        6,
        f"{name} has no ImageOrientationPatient.",
    )
    spacing = _numbers(_found(places, "PixelMeasuresSequence", "PixelSpacing"), 2, f"{name} has no PixelSpacing.")
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(float(along_row @ along_column)) > 1e-2:
        raise BadInput(
            f"{name} must have perpendicular unit vectors for ImageOrientationPatient, got {orientation.tolist()}."
        )
    if not (spacing > 0).all():
        raise BadInput(f"{name} must have a positive PixelSpacing, got {spacing.tolist()}.")
    if any("ModalityLUTSequence" in place for place in (instance, *places)):
        raise BadInput(f"{name} has a table for its values (ModalityLUTSequence), which is not supported.")
    slope, intercept = (
        float(default if value is None else value)
        for value, default in (
            (_found(places, "PixelValueTransformationSequence", "RescaleSlope"), 1.0),
            (_found(places, "PixelValueTransformationSequence", "RescaleIntercept"), 0.0),
        )
    )
    if not slope or not np.isfinite([slope, intercept]).all():
        raise BadInput(f"{name} must have a finite RescaleSlope other than 0, got {slope} and {intercept}.")
    return Plane(
        instance, index, frame, position, along_row / lengths[0], along_column / lengths[1],
        (float(spacing[0]), float(spacing[1])), _thickness(places), slope, intercept,
    )  # fmt: skip


def _thickness(places: Sequence[Dataset]) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = abs(float(_found(places, "PixelMeasuresSequence", keyword) or 0))
        if np.isfinite(value) and value:
            return value
    return 1.0


def _found(places: Sequence[Dataset], sequence: str, keyword: str) -> Any:
    """The element of a classic instance itself, or in the sequence of a functional group."""
    for place in places:
        items = place.get(sequence)
        for holder in (place, *(items or [])):
            value = holder.get(keyword)
            if value is not None and value != "":
                return value
    return None


def _numbers(value: Any, count: int, sentence: str) -> Vector:
    if value is None or len(value) != count:
        raise BadInput(sentence)
    found = np.array([float(part) for part in value], np.float64)
    if not np.isfinite(found).all():
        raise BadInput(f"{sentence[:-1]} of finite numbers.")
    return found


def memory_for(voxels: int, width: int) -> bool:
    """Whether so many voxels of so many bytes fit into half of the machine's memory."""
    return voxels * width <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
