"""DICOM SEG as a mask on the source's voxels: ours, highdicom's, and what viewers make, which is not always by the book.

OHIF's Label Map SEG has no FrameContentSequence, so that highdicom cannot read it, and only the painted slices; its binary SEG
describes the painted segments renumbered, while the frames keep the old numbers. One reader of our own takes all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom.geometry import SeriesGeometry
from dicom.seg_frames import Places, check_file, check_length, frames_of
from loop.errors import BadInput

_SEG, _LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
SEG_CLASSES = (_SEG, _LABELMAP)
"""SOP class UIDs."""
_MOST_SEGMENTS = 256
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class ReadSeg:
    """What a DICOM SEG says of a series.

    Attributes:
        voxels: (I, J, K) uint16, the number of the segment; 0 is none.
        segments: {number: label}, as described.
        written: the k that have a frame, ascending, also an empty one. painted: those with a voxel of a segment.
        creator, date, time, description: as it says; "" where it does not.
    """

    voxels: npt.NDArray[np.uint16]
    segments: Mapping[int, str]
    written: tuple[int, ...]
    painted: tuple[int, ...]
    sop_uid: str
    creator: str
    date: str
    time: str
    description: str


def read_seg(path: Path, geometry: SeriesGeometry) -> ReadSeg:
    """A DICOM SEG of a series; frames that are not there are empty slices.

    Raises:
        BadInput: not a DICOM SEG, damaged, cut off, fractional, of overlapping segments, or not of this series: other
            size, orientation, frame of reference or instances. The reason is told.
    """
    try:
        check_file(path)
        return _read(pydicom.dcmread(path), geometry)
    except BadInput:
        raise
    # An element may hold anything, and is converted when it is looked at; decoders raise whatever they meet.
    except Exception as error:  # noqa: BLE001
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"The DICOM SEG is damaged: {said[:200]}") from None


def _read(seg: Dataset, geometry: SeriesGeometry) -> ReadSeg:
    labelmap = _check_kind(seg)
    _check_source(seg, geometry)
    groups = list(seg.get("PerFrameFunctionalGroupsSequence") or [])
    frames = int(seg.get("NumberOfFrames") or 1)
    if len(groups) != frames:
        raise BadInput(f"The DICOM SEG claims {frames} frames, and says where {len(groups)} of them are.")
    segments = _segments(seg)
    if frames > geometry.shape[2] * (1 if labelmap else max(len(segments), 1)):
        raise BadInput(
            f"The DICOM SEG must have at most a frame for each of {geometry.shape[2]} slices"
            f"{'' if labelmap else ' and segments'}, got {frames}."
        )
    check_length(seg, frames)
    shared = list(seg.get("SharedFunctionalGroupsSequence") or [])
    common = shared[0] if shared else Dataset()
    places = Places(geometry, common)
    names = [f"Frame {number} of the DICOM SEG" for number in range(1, frames + 1)]
    at = [places.slice_of(group, name) for group, name in zip(groups, names, strict=True)]
    numbers = [0] * frames if labelmap else _renumbered([_number(group, common) for group in groups], segments)
    _check_once(list(zip(at, numbers, strict=True)))
    voxels = np.zeros(geometry.shape, np.uint16)
    for k, number, frame in zip(at, numbers, frames_of(seg, frames), strict=True):
        plane = voxels[:, :, k]
        if labelmap:
            plane[:] = frame.T
            continue
        drawn = frame.T != 0
        if (both := (plane != 0) & drawn).any():
            raise BadInput(
                f"The segments of the DICOM SEG must not overlap, but {int(both.sum())} voxels of slice {k} are of "
                f"segments {int(plane[both][0])} and {number}."
            )
        plane[drawn] = number
    painted = np.flatnonzero(voxels.any(axis=(0, 1)))
    return ReadSeg(
        voxels, segments, tuple(sorted(set(at))), tuple(painted.tolist()), _text(seg, "SOPInstanceUID"),
        _text(seg, "ContentCreatorName") or _text(seg, "OperatorsName"), _text(seg, "ContentDate"), _text(seg, "ContentTime"),
        _text(seg, "SeriesDescription"),
    )  # fmt: skip


def _check_kind(seg: Dataset) -> bool:
    """Whether voxels are segment numbers (a Label Map) and not one bit for each segment; raises unless it is one of them."""
    kind = str(seg.get("SOPClassUID", ""))
    if kind not in SEG_CLASSES:
        raise BadInput(f"The file must be a DICOM SEG, got {UID(kind).name[:100] or 'one without SOPClassUID'}.")
    said = str(seg.get("SegmentationType") or ("LABELMAP" if kind == _LABELMAP else "BINARY"))
    if said not in ("BINARY", "LABELMAP"):
        raise BadInput(f"The DICOM SEG must be BINARY or LABELMAP, got {said[:40]}.")
    labelmap = said == "LABELMAP"
    if seg.get("SamplesPerPixel", 1) != 1 or seg.get("PixelRepresentation", 0) != 0:
        raise BadInput("The DICOM SEG must have one unsigned value a pixel.")
    if seg.get("BitsAllocated") not in ((8, 16) if labelmap else (1, 8)):
        raise BadInput(f"A {said} DICOM SEG cannot have {seg.get('BitsAllocated')} bits a pixel.")
    return labelmap


def _check_source(seg: Dataset, geometry: SeriesGeometry) -> None:
    columns, rows, _ = geometry.shape
    if (seg.get("Rows"), seg.get("Columns")) != (rows, columns):
        raise BadInput(
            f"The DICOM SEG must have the {rows} rows and {columns} columns of the series, got {seg.get('Rows')} and "
            f"{seg.get('Columns')}."
        )
    frame = str(seg.get("FrameOfReferenceUID") or "")
    if frame and frame != geometry.frame_of_reference_uid:
        raise BadInput(
            f"The DICOM SEG must have the series' frame of reference {geometry.frame_of_reference_uid}, got {frame[:70]}."
        )


def _segments(seg: Dataset) -> dict[int, str]:
    items = list(seg.get("SegmentSequence") or [])
    if len(items) > _MOST_SEGMENTS:
        raise BadInput(f"The DICOM SEG must describe at most {_MOST_SEGMENTS} segments, got {len(items)}.")
    found: dict[int, str] = {}
    for item in items:
        number = int(item.SegmentNumber)
        if number in found:
            raise BadInput(f"The DICOM SEG describes segment {number} twice.")
        found[number] = _text(item, "SegmentLabel")
    return found


def _number(group: Dataset, shared: Dataset) -> int:
    for place in (group, shared):
        for item in place.get("SegmentIdentificationSequence") or []:
            return int(item.ReferencedSegmentNumber)
    raise BadInput("A frame of the DICOM SEG does not say of which segment it is.")


def _renumbered(numbers: list[int], segments: Mapping[int, str]) -> list[int]:
    """The frames' segment numbers as the description has them; OHIF renumbers only there, in the same order."""
    used = sorted(set(numbers))
    if set(used) <= set(segments):
        return numbers
    if len(used) != len(segments):
        raise BadInput(
            f"The frames of the DICOM SEG are of the segments {str(used)[:100]}, but {str(sorted(segments))[:100]} are described."
        )
    ours = dict(zip(used, sorted(segments), strict=True))
    return [ours[number] for number in numbers]


def _check_once(places: list[tuple[int, int]]) -> None:
    seen: set[tuple[int, int]] = set()
    for k, number in places:
        if (k, number) in seen:
            of_segment = f" of segment {number}" if number else ""
            raise BadInput(f"The DICOM SEG has two frames{of_segment} for slice {k}.")
        seen.add((k, number))


def _text(dataset: Dataset, keyword: str) -> str:
    shown = "".join(character for character in str(dataset.get(keyword) or "") if character.isprintable())
    return shown.strip()[:_LONGEST_TEXT]
