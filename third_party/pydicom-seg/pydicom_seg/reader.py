"""A DICOM SEG becomes a mask: every frame goes to the plane that its own position tells.

Frames are decoded by pydicom and not by highdicom, which refuses the SEGs that OHIF 3.13 exports because they have no
FrameContentSequence, a group that is not needed to place a frame.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import iter_pixels

from pydicom_seg.errors import UnsupportedSegmentation
from pydicom_seg.geometry import Indices, Planes, shared_numbers

Mask = NDArray[np.unsignedinteger]

TYPES = {"BINARY": "1.2.840.10008.5.1.4.1.1.66.4", "LABELMAP": "1.2.840.10008.5.1.4.1.1.66.7"}


@dataclass(frozen=True)
class MultiClassResult:
    """What was read: the mask, whose values are the segment numbers."""

    image: SimpleITK.Image


class MultiClassReader:
    """Reads SEGs whose segments do not overlap."""

    def read(self, dataset: Dataset) -> MultiClassResult:
        """Puts all frames into one mask that reaches from the first stored plane to the last.

        Planes in between that the SEG leaves out are zero. A SEG does not tell what lies before and behind: the origin
        of the image says where it begins.
        """
        refuse_other_types(dataset)
        frames = range(int(dataset.NumberOfFrames))
        measures = [group(dataset, frame, "PixelMeasuresSequence") for frame in frames]
        planes = Planes.read(
            [group(dataset, frame, "PlanePositionSequence") for frame in frames],
            [group(dataset, frame, "PlaneOrientationSequence") for frame in frames],
            measures,
        )
        grid, indices = planes.stack(dataset.Rows, dataset.Columns, plane_spacing(measures, planes))
        return MultiClassResult(grid.to_image(read_labels(dataset, indices, grid.size[2])))


def refuse_other_types(dataset: Dataset) -> None:
    """Refuses what is no SEG, and SEGs that hold no clear label for a voxel."""
    kind = (dataset.get("SegmentationType"), dataset.get("SOPClassUID"))
    if kind not in TYPES.items():
        raise UnsupportedSegmentation(
            "The dataset must be a DICOM SEG of SegmentationType BINARY or LABELMAP.",
            got=kind,
            way_out="Export it as BINARY: the threshold of a FRACTIONAL one is the exporter's to choose.",
        )
    if not dataset.get("NumberOfFrames") or dataset.get("PixelPaddingValue"):
        raise UnsupportedSegmentation(
            "A SEG must have frames, and a label map the background 0.",
            got=f"{dataset.get('NumberOfFrames')} frames, PixelPaddingValue {dataset.get('PixelPaddingValue')}",
            way_out="Export it with all planes, and with 0 as its background.",
        )


def group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """Finds a functional group of a frame: its own, else the shared one."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(sequence) or []
        if index < len(groups) and groups[index].get(keyword):
            return groups[index][keyword][0]
    raise UnsupportedSegmentation(
        f"Every frame must have a {keyword}, its own or a shared one.",
        got=f"none for frame {frame + 1}",
        way_out="Export the segmentation as a SEG of a series in patient coordinates.",
    )


def plane_spacing(measures: Sequence[Dataset], planes: Planes) -> float:
    """Gives the distance between neighbouring planes of the source images.

    The gaps between the stored planes do not tell it, as a SEG may hold every second plane only.
    """
    keyword = "SpacingBetweenSlices"
    if not measures[0].get(keyword) and np.ptp(planes.distances) == 0:
        keyword = "SliceThickness"
    return abs(float(shared_numbers(measures, keyword, 1)[0]))


def read_labels(dataset: Dataset, indices: Indices, planes: int) -> Mask:
    """Decodes all frames into one array of planes, rows and columns."""
    described = {int(segment.SegmentNumber) for segment in dataset.SegmentSequence} - {0}
    numbers = frame_numbers(dataset, len(indices))
    refuse_repeated(indices, numbers)
    array = np.zeros((planes, dataset.Rows, dataset.Columns), dtype=np.min_scalar_type(max(described, default=1)))
    for index, number, pixels in zip(indices, numbers, decoded_frames(dataset), strict=True):
        labels = pixels if number is None else np.multiply(pixels, number, dtype=np.uint16)
        refuse_undescribed(np.unique(labels[labels != 0]).tolist() if number is None else [number], described)
        add_frame(array[index], labels)
    return array


def decoded_frames(dataset: Dataset) -> Iterator[Mask]:
    """Decodes one frame after another: all of them at once could take a hundred times the memory of the mask."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if dataset.BitsAllocated > 1 or syntax.is_encapsulated or not syntax.is_little_endian:
        yield from iter_pixels(dataset, raw=True)
        return
    # pydicom 3.0 fails on a frame that begins within a byte.
    packed, size = np.frombuffer(dataset.PixelData, dtype=np.uint8), dataset.Rows * dataset.Columns
    for start in range(0, int(dataset.NumberOfFrames) * size, size):
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield bits[start % 8 :][:size].reshape(dataset.Rows, dataset.Columns)


def frame_numbers(dataset: Dataset, count: int) -> list[int | None]:
    """Gives the segment number of each frame, none for the frames of a label map, which hold all segments."""
    if dataset.SegmentationType == "LABELMAP":
        return [None] * count
    items = (group(dataset, frame, "SegmentIdentificationSequence") for frame in range(count))
    return [int(item.ReferencedSegmentNumber) for item in items]


def refuse_repeated(indices: Indices, numbers: Sequence[int | None]) -> None:
    """Refuses two frames for the same segment on the same plane, such as two points in time."""
    places = list(zip(indices.tolist(), numbers, strict=True))
    if len(set(places)) < len(places):
        raise UnsupportedSegmentation(
            "A segment must have one frame for a plane.",
            got=f"{len(places)} frames for {len(set(places))} pairs of plane and segment",
            way_out="Export one SEG for each point in time, without tiles.",
        )


def refuse_undescribed(numbers: Sequence[int], described: Set[int]) -> None:
    """Refuses numbers without a description: some viewers renumber the descriptions but not the frames."""
    strangers = sorted(set(numbers) - described)
    if strangers:
        raise UnsupportedSegmentation(
            "Every segment number in a frame must be described in SegmentSequence.",
            got=f"{strangers} where {sorted(described)} are described",
            way_out="Export the segmentation as a label map, or with all its segments painted.",
        )


def add_frame(plane: Mask, labels: Mask) -> None:
    """Adds the labels of a frame to its plane, where no other label may be yet."""
    overlap = (plane > 0) & (labels > 0)
    if overlap.any():
        first = int(np.argmax(overlap))
        raise UnsupportedSegmentation(
            "Segments must not overlap: a mask holds one label for a voxel.",
            got=f"{overlap.sum()} voxels of a plane in segment {plane.flat[first]} and in {labels.flat[first]}",
            way_out="Export one SEG for each of the overlapping segments.",
        )
    np.copyto(plane, labels, casting="same_kind", where=labels > 0)
