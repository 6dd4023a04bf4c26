"""Is this DICOM SEG a label for this series? In our values, with what it says of slices."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datastore.labels import in_our_values
from dicom.geometry import SeriesGeometry
from dicom.seg_reader import read_seg
from dicom.segments import match
from loop.config import BACKGROUND_STROKES


@dataclass(frozen=True)
class DicomLabel:
    """A mask in our values, and the slices it has.

    Attributes:
        mask: (I, J, K).
        written: slices that it has a frame of, also an empty one. painted: those with a voxel of a label.
    """

    mask: npt.NDArray[np.uint8]
    written: tuple[int, ...]
    painted: tuple[int, ...]


def read_dicom_label(
    path: Path, geometry: SeriesGeometry, values: Mapping[str, int], unlabeled: int | None
) -> DicomLabel:
    """The label in a DICOM SEG.

    Args:
        values: {name: voxel value}, with that of strokes of background where scribbles are asked for.
        unlabeled: value of voxels without a stroke, in the result too; None where masks are asked for.

    Raises:
        BadInput: not a SEG of this series, or a segment that is none of the labels.
    """
    seg = read_seg(path, geometry)
    info = match(seg.segments, np.unique(seg.voxels[seg.voxels > 0]).tolist(), values)
    voxels = np.where(np.isin(seg.voxels, [entry["idx"] for entry in info]), seg.voxels, 0)
    classes = {name: value for name, value in values.items() if name != BACKGROUND_STROKES}
    if unlabeled is not None and all(entry["name"] != BACKGROUND_STROKES for entry in info):
        info = [*info, {"name": BACKGROUND_STROKES, "idx": 0}]  # in a SEG, 0 is always "nothing drawn"
    mask = in_our_values(voxels, classes, info, unlabeled)
    return DicomLabel(mask, seg.written, tuple(np.flatnonzero(voxels.any(axis=(0, 1))).tolist()))
