"""Masks as DICOM SEG, for an archive: with the source's patient and study, and references to its instances."""

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Literal

import numpy as np
import numpy.typing as npt
from highdicom import (
    AlgorithmIdentificationSequence,
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
)
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RLELossless

from dicom.geometry import SeriesGeometry
from dicom.segments import LONGEST_LABEL, colour, concepts
from loop.errors import BadInput

# It logs every module that it copies.
logging.getLogger("highdicom").setLevel(logging.WARNING)

Kind = Literal["labelmap", "binary"]

MODEL_NAME = "NextSlice"
"""By which what we stored ourselves is told from what people drew."""
_LPS = np.array([-1.0, -1.0, 1.0])
_SERIES_NUMBER = 300
_TEXTS = (
    "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight", "StudyDate", "StudyTime", "StudyID",
    "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
"""Taken over from the source. The Type 2 ones among them must be there, if only empty."""
_MUST_BE = frozenset(_TEXTS) - {"PatientAge", "PatientWeight", "StudyDescription"}
_FAMILY = Code("123110", "DCM", "Artificial Intelligence")


@dataclass(frozen=True)
class Author:
    """Who made a mask.

    Attributes:
        name: annotator or model. at: when.
        version: of a model (its digest); "" says that a person made it.
        begins: it is what somebody begins with, and gives way to the next one.
    """

    name: str
    at: datetime
    version: str = ""
    begins: bool = False

    @property
    def described(self) -> str:
        """For the list of series in a viewer."""
        if self.begins:
            return f"NextSlice start mask {self.name} {self.version[:8]}".rstrip()[:LONGEST_LABEL]
        if self.version:
            return f"NextSlice model {self.name} {self.version[:8]}"[:LONGEST_LABEL]
        return f"NextSlice annotator {self.name or '(unnamed)'}"[:LONGEST_LABEL]


@dataclass(frozen=True)
class Written:
    """A DICOM SEG as a file's content, and its UIDs."""

    content: bytes
    series_uid: str
    sop_uid: str


def write_seg(
    mask: npt.NDArray[np.uint8],
    geometry: SeriesGeometry,
    values: Mapping[str, int],
    author: Author,
    *,
    slices: Sequence[int] | None = None,
    kind: Kind = "labelmap",
) -> Written:
    """A mask of a series as DICOM SEG. The same arguments give the same UIDs, so that a second try stores nothing new.

    Every slice that is written has its frame, also an empty one: "nothing here" is an answer that is told by the frame.

    Args:
        mask: (I, J, K), 0 and the values; of the voxels of `geometry`.
        values: {name: voxel value}, which become the segments' labels and numbers. All are described, painted or not.
        slices: the k to write; None is all.
        kind: "labelmap" is one frame a slice and RLE, which OHIF opens for editing; "binary" one a slice and segment,
            which older software reads.

    Raises:
        BadInput: mask and geometry differ, a value without a name, a binary SEG of values with gaps, no such slice.
    """
    _check(mask, geometry, values, kind)
    chosen = list(range(geometry.shape[2])) if slices is None else sorted(set(slices))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < geometry.shape[2]:
        raise BadInput(
            f"The slices of a DICOM SEG must be some of 0 to {geometry.shape[2] - 1}, got {str(chosen)[:100]}."
        )
    planes = np.ascontiguousarray(mask[:, :, chosen].transpose(2, 1, 0))
    facts = (
        geometry.series_uid,
        # A model's mask is the same one whenever it is predicted.
        (author.name, author.version or author.at),
        chosen,
        sorted(values.items()),
        kind,
        hashlib.sha256(planes.tobytes()).hexdigest(),
        # A start mask is deleted again, so it must never be an instance that was stored to stay.
        *(["start mask"] if author.begins else []),
    )
    series_uid, sop_uid = _uid("series", *facts), _uid("instance", *facts)
    binary = kind == "binary"
    seg = Segmentation(
        source_images=[_stand_in(geometry, k) for k in chosen],
        pixel_array=planes,
        segmentation_type=SegmentationTypeValues.BINARY if binary else SegmentationTypeValues.LABELMAP,
        segment_descriptions=[
            _segment(value, name, author) for name, value in sorted(values.items(), key=lambda v: v[1])
        ],
        series_instance_uid=series_uid,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=sop_uid,
        instance_number=1,
        manufacturer="NextSlice",
        manufacturer_model_name=MODEL_NAME,
        software_versions=version("nextslice"),
        device_serial_number="1",
        content_label="SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian if binary else RLELossless,
        pixel_measures=_measures(geometry),
        plane_orientation=PlaneOrientationSequence("PATIENT", _orientation(geometry)),
        plane_positions=[PlanePositionSequence("PATIENT", _position(geometry, k)) for k in chosen],
        omit_empty_frames=False,
        series_description=author.described,
        specific_character_set="ISO_IR 192",
    )
    _take_over(seg, geometry)
    _sign(seg, author)
    _refer(seg, geometry)
    dimensions = _uid("dimensions", *facts)  # highdicom would draw one
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    # highdicom takes the distance of the slices that are written.
    shared = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    shared.SpacingBetweenSlices = shared.SliceThickness
    if not binary:
        # highdicom describes the background too; OHIF would list it as a segment, and shift the colours of the others.
        seg.SegmentSequence = [item for item in seg.SegmentSequence if item.SegmentNumber]
    out = io.BytesIO()
    seg.save_as(out, enforce_file_format=True)
    return Written(out.getvalue(), series_uid, sop_uid)


def _check(mask: npt.NDArray[np.uint8], geometry: SeriesGeometry, values: Mapping[str, int], kind: Kind) -> None:
    if mask.shape != geometry.shape:
        raise BadInput(f"The mask must have the series' shape {geometry.shape}, got {mask.shape}.")
    stray = sorted(set(np.flatnonzero(np.bincount(mask.ravel())).tolist()) - {0, *values.values()})
    if stray:
        raise BadInput(f"A DICOM SEG must hold 0 and {', '.join(map(str, values.values()))}, got {stray[0]}.")
    if kind == "binary" and sorted(values.values()) != list(range(1, len(values) + 1)):
        raise BadInput(
            f"A binary DICOM SEG must have segments numbered from 1 without gaps, got {sorted(values.values())}."
        )


def _uid(*facts: object) -> str:
    """A UID that follows from the facts."""
    return f"2.25.{int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:16])}"


def _stand_in(geometry: SeriesGeometry, k: int) -> Dataset:
    """What highdicom looks at of a source image. Texts are taken over later: it refuses or warns about some that exist."""
    image = Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID = geometry.study_uid, geometry.series_uid
    image.FrameOfReferenceUID = geometry.frame_of_reference_uid
    image.SOPClassUID = MRImageStorage if geometry.frame_numbers[k] else geometry.sop_class_uid
    image.SOPInstanceUID = _uid_of_slice(geometry, k)
    image.Modality, image.PatientID, image.PatientName, image.PatientBirthDate = "OT", "", "", ""
    image.PatientSex, image.AccessionNumber, image.StudyID, image.StudyDate, image.StudyTime = "", "", "", "", ""
    image.Columns, image.Rows = geometry.shape[:2]
    image.ImagePositionPatient = _decimal(_position(geometry, k))
    image.ImageOrientationPatient = _decimal(_orientation(geometry))
    measures = _measures(geometry)[0]
    image.PixelSpacing, image.SliceThickness = measures.PixelSpacing, measures.SliceThickness
    return image


def _uid_of_slice(geometry: SeriesGeometry, k: int) -> str:
    """The instance's; of a multi-frame one, which highdicom would want whole, one that stands for the frame."""
    return _uid(geometry.sop_uids[k], k) if geometry.frame_numbers[k] else geometry.sop_uids[k]


def _refer(seg: Dataset, geometry: SeriesGeometry) -> None:
    """Put the frames of multi-frame instances where something stands for them."""
    if not any(geometry.frame_numbers):
        return
    source = {_uid_of_slice(geometry, k): k for k in range(geometry.shape[2])}

    def put(item: Dataset, *, frame: bool) -> str:
        k = source.get(item.ReferencedSOPInstanceUID)
        if k is not None:  # highdicom uses some items twice
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = geometry.sop_class_uid, geometry.sop_uids[k]
            if frame:
                item.ReferencedFrameNumber = geometry.frame_numbers[k]
        return str(item.ReferencedSOPInstanceUID)

    for group in seg.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or []:
            for item in derivation.SourceImageSequence:
                put(item, frame=True)
    for holder, keyword in (
        (seg, "SourceImageSequence"),
        (seg.ReferencedSeriesSequence[0], "ReferencedInstanceSequence"),
    ):
        if items := list(holder.get(keyword) or []):
            setattr(holder, keyword, list({put(item, frame=False): item for item in items}.values()))


def _segment(value: int, name: str, author: Author) -> SegmentDescription:
    category, kind = concepts(name)
    algorithm = None
    if author.version:
        algorithm = AlgorithmIdentificationSequence(
            name=author.name[:LONGEST_LABEL], version=author.version[:LONGEST_LABEL], family=_FAMILY
        )
    return SegmentDescription(
        segment_number=value,
        segment_label=name[:LONGEST_LABEL],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC if author.version else SegmentAlgorithmTypeValues.MANUAL,
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_rgb(*colour(value)),
    )


def _measures(geometry: SeriesGeometry) -> PixelMeasuresSequence:
    along_row, along_column, apart = np.linalg.norm(geometry.matrix[:3, :3], axis=0).tolist()
    return PixelMeasuresSequence(
        pixel_spacing=_decimal(np.array([along_column, along_row])), slice_thickness=_decimal(np.array([apart]))[0],
        spacing_between_slices=_decimal(np.array([apart]))[0],
    )  # fmt: skip


def _orientation(geometry: SeriesGeometry) -> list[float]:
    directions = _LPS[:, None] * geometry.matrix[:3, :2]
    return _decimal((directions / np.linalg.norm(directions, axis=0)).T.ravel())


def _position(geometry: SeriesGeometry, k: int) -> list[float]:
    return _decimal(_LPS * (geometry.matrix @ [0, 0, k, 1])[:3])


def _decimal(values: npt.NDArray[np.float64] | Sequence[float]) -> list[float]:
    """As decimal strings of at most 16 characters, which is what DICOM keeps of a number."""
    return [float(f"{value:.9g}") + 0.0 for value in values]  # no -0


def _take_over(seg: Dataset, geometry: SeriesGeometry) -> None:
    """Patient and study as the source says; empty where it does not, or where DICOM would not allow it."""
    try:
        header = Dataset.from_json(dict(geometry.header))
    except Exception:  # noqa: BLE001 - whatever it meets, who the patient is stands in the geometry too
        header = Dataset()
    seg.PatientID = geometry.patient_id
    for keyword in _TEXTS:
        value = header.get(keyword)
        try:
            if value not in (None, "") or keyword in _MUST_BE:
                setattr(seg, keyword, "" if value is None else value)
        except ValueError:
            setattr(seg, keyword, "")


def _sign(seg: Dataset, author: Author) -> None:
    """Who and when. highdicom asks the clock itself."""
    date, time = author.at.strftime("%Y%m%d"), author.at.strftime("%H%M%S")
    seg.SeriesDate = seg.ContentDate = seg.InstanceCreationDate = date
    seg.SeriesTime = seg.ContentTime = seg.InstanceCreationTime = time
    for item in seg.get("ContributingEquipmentSequence") or []:
        item.ContributionDateTime = date + time
    seg.ContentCreatorName = author.name.replace("\\", " ").replace("^", " ").replace("=", " ")[:LONGEST_LABEL]
    seg.ContentDescription = author.described
