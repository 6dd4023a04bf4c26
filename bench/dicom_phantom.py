"""Volumes turned into DICOM series, so that an archive can be filled with images whose voxels are known."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_OUR_ROOT = "2.25."
_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage}


@dataclass(frozen=True)
class Study:
    """Who and when: what the instances of a series say of their patient and study."""

    patient_id: str
    study: str = "study"
    series: str = "series"
    modality: str = "MR"
    date: str = "20240115"
    time: str = "101500"


def uid(*parts: object) -> str:
    """A UID that follows from the parts: the same each time, another for other parts."""
    number = int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16])
    return f"{_OUR_ROOT}{number}"


def write_series(
    folder: Path, array: NDArray[Any], affine: NDArray[np.float64], study: Study, *, axis: int = 2
) -> list[Path]:
    """Write a volume as one DICOM file a slice, 0000.dcm and so on, in the order of the slices.

    Args:
        array: (I, J, K) integers of at most 16 bits. affine: (4, 4), voxels to RAS mm.
        axis: the one that is cut into slices; of the others the first runs along the columns.

    Raises:
        ValueError: voxels that DICOM's 16 bits cannot hold.
    """
    if array.dtype.kind not in "iu" or not -(2**15) <= array.min() <= array.max() < 2**15:
        raise ValueError(f"The voxels must be whole numbers of 16 bits, got {array.dtype}.")
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows = (other for other in range(3) if other != axis)
    files = []
    for index in range(array.shape[axis]):
        instance = instance_of(study, index)
        start = np.zeros(4)
        start[axis], start[3] = index, 1
        place_in_space(instance, affine, start, columns, rows, axis)
        plane = np.take(array, index, axis).T
        set_pixels(instance, plane.astype("<i2"))
        target = folder / f"{index:04d}.dcm"
        instance.save_as(target, enforce_file_format=True)
        files.append(target)
    return files


def place_in_space(
    instance: Dataset, affine: NDArray[np.float64], start: NDArray[np.float64], columns: int, rows: int, axis: int
) -> None:
    """Position, orientation and spacing of the slice whose first voxel is `start` (i, j, k, 1)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = _RAS_TO_LPS @ affine[:3, :3] / spacing
    instance.ImagePositionPatient = _decimal(_RAS_TO_LPS @ (affine @ start)[:3])
    instance.ImageOrientationPatient = _decimal(np.concatenate([direction[:, columns], direction[:, rows]]))
    instance.PixelSpacing = _decimal(spacing[[rows, columns]])
    instance.SliceThickness = instance.SpacingBetweenSlices = _decimal(spacing[[axis]])[0]


def set_pixels(instance: Dataset, plane: NDArray[np.int16]) -> None:
    """Pixels (rows, columns) and what describes them."""
    instance.Rows, instance.Columns = plane.shape
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated, instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 16, 16, 15, 1
    instance.PixelData = plane.tobytes()


def instance_of(study: Study, index: int) -> FileDataset:
    """An instance without geometry and pixels: who, when, and its place in the hierarchy."""
    kind = _CLASSES[study.modality]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kind, ExplicitVRLittleEndian
    of_study = (study.patient_id, study.study)
    meta.MediaStorageSOPInstanceUID = uid(*of_study, study.series, "instance", index)
    instance = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    instance.SOPClassUID, instance.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    instance.PatientID, instance.PatientName = study.patient_id, f"Phantom^{study.patient_id}"
    instance.PatientBirthDate, instance.PatientSex = "", ""
    instance.StudyInstanceUID, instance.StudyID = uid(*of_study), "1"
    instance.SeriesInstanceUID, instance.SeriesNumber = uid(*of_study, study.series), 1
    instance.FrameOfReferenceUID = uid(*of_study, "frame of reference")
    instance.StudyDate = instance.SeriesDate = instance.AcquisitionDate = instance.ContentDate = study.date
    instance.StudyTime = instance.SeriesTime = instance.AcquisitionTime = instance.ContentTime = study.time
    instance.Modality, instance.Manufacturer, instance.SeriesDescription = study.modality, "NextSlice", study.series
    instance.AccessionNumber, instance.ReferringPhysicianName, instance.PositionReferenceIndicator = "", "", ""
    instance.InstanceNumber = index + 1
    if study.modality == "CT":
        instance.RescaleSlope, instance.RescaleIntercept = 1, 0
    return instance


def _decimal(values: NDArray[np.float64]) -> list[float]:
    """As decimal strings of at most 16 characters, which is what DICOM keeps of a number."""
    return [float(f"{value:.9g}") for value in values]
