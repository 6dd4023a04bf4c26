"""DICOM SEGs as OHIF and as highdicom make them, of series whose files are at hand: what people store in an archive."""

import io
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from bench.dicom_phantom import uid

_LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
_TAKEN = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "Rows", "Columns",
)  # fmt: skip


def ohif_seg(
    source: Sequence[Path],
    mask: npt.NDArray[np.uint8],
    labels: Sequence[str],
    name: str,
    *,
    slices: Sequence[int] | None = None,
    creator: str = "",
) -> bytes:
    """A Label Map in RLE: a frame for each painted slice, which refers to its instance; no FrameContentSequence.

    Args:
        source: files of the series, in the order of k. mask: (I, J, K), values from 1 as the labels.
        name: its UIDs follow from it.
        slices: the k that get a frame; None is the painted ones, as OHIF does it.
        creator: whom it says it is from.
    """
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in source]
    chosen = np.flatnonzero(mask.any(axis=(0, 1))).tolist() if slices is None else list(slices)
    seg = _head(images[0], name)
    if creator:
        seg.ContentCreatorName = creator
    seg.SegmentSequence = [_segment(number, label) for number, label in enumerate(labels, 1)]
    referred = Dataset()
    referred.SeriesInstanceUID = images[0].SeriesInstanceUID
    referred.ReferencedInstanceSequence = [_reference(images[k]) for k in chosen]
    seg.ReferencedSeriesSequence = [referred]
    seg.PerFrameFunctionalGroupsSequence = [_frame(images[k]) for k in chosen]
    seg.NumberOfFrames = len(chosen)
    frames = [np.ascontiguousarray(mask[:, :, k].T) for k in chosen]
    described = {"rows": seg.Rows, "columns": seg.Columns, "samples_per_pixel": 1, "number_of_frames": 1,
                 "photometric_interpretation": "MONOCHROME2", "bits_allocated": 8, "bits_stored": 8,
                 "pixel_representation": 0}  # fmt: skip
    encoded = [RLELosslessEncoder.encode(frame, **described) for frame in frames]
    seg.PixelData = encapsulate(encoded)
    seg["PixelData"].VR = "OB"
    seg["PixelData"].is_undefined_length = True
    return _content(seg)


def _head(image: Dataset, name: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = _LABEL_MAP, RLELossless
    meta.MediaStorageSOPInstanceUID = uid(name, "instance")
    seg = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _TAKEN:
        if keyword in image:
            setattr(seg, keyword, image[keyword].value)
    seg.SOPClassUID, seg.SOPInstanceUID, seg.SeriesInstanceUID = _LABEL_MAP, uid(name, "instance"), uid(name, "series")
    seg.Modality, seg.SeriesNumber, seg.InstanceNumber = "SEG", 99, 1
    seg.Manufacturer, seg.SeriesDescription, seg.ContentLabel = "OHIF", "Research Derived series", "SEGMENTATION"
    seg.SegmentationType, seg.PhotometricInterpretation, seg.SamplesPerPixel = "LABELMAP", "MONOCHROME2", 1
    seg.BitsAllocated, seg.BitsStored, seg.HighBit, seg.PixelRepresentation = 8, 8, 7, 0
    return seg


def _segment(number: int, label: str) -> Dataset:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = number, label, "MANUAL"
    return segment


def _reference(image: Dataset) -> Dataset:
    found = Dataset()
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return found


def _frame(image: Dataset) -> Dataset:
    group, derivation, position, orientation = Dataset(), Dataset(), Dataset(), Dataset()
    derivation.SourceImageSequence = [_reference(image)]
    position.ImagePositionPatient = image.ImagePositionPatient
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    group.DerivationImageSequence, group.PlanePositionSequence = [derivation], [position]
    group.PlaneOrientationSequence = [orientation]
    return group


def highdicom_seg(
    source: Sequence[Path],
    mask: npt.NDArray[np.uint8],
    labels: Sequence[str],
    *,
    creator: str = "",
    algorithm: str = "",
) -> bytes:
    """A binary SEG with every frame, also the empty ones, as a workstation may make it. Arguments as of `ohif_seg`.

    Args:
        algorithm: that made it, with nobody's hand in it.
    """
    kinds = highdicom.seg.SegmentAlgorithmTypeValues
    made_by = None
    if algorithm:
        made_by = highdicom.AlgorithmIdentificationSequence(
            name=algorithm, version="1", family=codes.DCM.ArtificialIntelligence
        )
    described = [
        highdicom.seg.SegmentDescription(
            number, label, codes.SCT.Tissue, codes.SCT.Tissue, kinds.AUTOMATIC if algorithm else kinds.MANUAL, made_by
        )
        for number, label in enumerate(labels, 1)
    ]
    seg = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in source],
        pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=7,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="Workstation",
        manufacturer_model_name="Workstation",
        software_versions="1",
        device_serial_number="1",
        content_creator_name=creator or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
    )
    return _content(seg)


def _content(seg: Dataset) -> bytes:
    out = io.BytesIO()
    seg.save_as(out, enforce_file_format=True)
    return out.getvalue()
