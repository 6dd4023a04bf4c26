"""Instances made into volumes: voxels and geometry exact, everything doubtful refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, JPEGLossless

from bench.dicom_phantom import Study, uid, write_series
from dicom.geometry import SeriesGeometry
from dicom.planes import NoDecoder
from dicom.series import Series, read_series
from loop.errors import BadInput

AXIAL = np.array([[-1.5, 0, 0, 40], [0, -1.25, 0, 30], [0, 0, 4, -20], [0, 0, 0, 1]], np.float64)
FLIPPED = np.array([[1.5, 0, 0, -40], [0, 1.25, 0, -30], [0, 0, -4, 20], [0, 0, 0, 1]], np.float64)
_TURN = np.array([[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = _TURN * [0.9, 1.1, 3.0]
OBLIQUE[:3, 3] = [12.5, -7.25, 33.0]


def voxels(shape: tuple[int, int, int] = (10, 8, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 2000, shape).astype(np.int16)


def at(array: np.ndarray, affine: np.ndarray) -> dict[tuple[float, ...], float]:
    """{place in mm: value} of every voxel."""
    indices = np.indices(array.shape).reshape(3, -1)
    places = (affine @ np.vstack([indices, np.ones(indices.shape[1])]))[:3].round(2) + 0.0
    return dict(zip(map(tuple, places.T.tolist()), array.ravel().tolist(), strict=True))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., list[Path]]:
    def write(affine: np.ndarray = AXIAL, array: np.ndarray | None = None, axis: int = 2, **of: str) -> list[Path]:
        array = voxels() if array is None else array
        return write_series(tmp_path / "series", array, affine, Study("P1", **of), axis=axis)

    return write


def changed(file: Path, change: Callable[[Dataset], Any]) -> None:
    instance = pydicom.dcmread(file)
    change(instance)
    instance.save_as(file)


@pytest.mark.parametrize("affine", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_voxel_is_where_it_was(written: Callable[..., list[Path]], affine: np.ndarray, axis: int) -> None:
    array = voxels()
    series = read_series(reversed(written(affine, array, axis)))
    assert series.volume.array.dtype == np.int16
    assert at(series.volume.array, series.volume.affine) == at(array, affine)


def test_an_axial_series_comes_back_as_it_was_with_its_instances(written: Callable[..., list[Path]]) -> None:
    files = written()
    series = read_series(files[::2] + files[1::2])
    assert np.array_equal(series.volume.array, voxels())
    assert np.allclose(series.volume.affine, AXIAL)
    geometry = series.geometry
    assert geometry.sop_uids == tuple(str(pydicom.dcmread(file).SOPInstanceUID) for file in files)
    assert geometry.frame_numbers == (0,) * 6
    assert geometry.slice_of(geometry.sop_uids[4]) == 4
    assert (geometry.patient_id, geometry.modality, geometry.study_date) == ("P1", "MR", "20240115")
    assert geometry.frame_of_reference_uid == uid("P1", "study", "frame of reference")


def test_the_geometry_survives_json(written: Callable[..., list[Path]], tmp_path: Path) -> None:
    geometry = read_series(written()).geometry
    (tmp_path / "kept.json").write_text(geometry.to_json())
    assert SeriesGeometry.read(tmp_path / "kept.json") == geometry
    assert "7FE00010" not in geometry.header
    assert geometry.header["00100020"]["Value"] == ["P1"]


def test_real_series_are_read_as_itk_reads_them(shared_data: Path) -> None:
    folders = sorted((shared_data / "dicom").glob("*/*"))
    assert len(folders) == 4
    for folder in folders:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image, series = reader.Execute(), read_series(folder.glob("*.dcm"))
        assert np.array_equal(series.volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
        corner = [size - 1 for size in image.GetSize()]
        for index in ([0, 0, 0], corner):
            x, y, z = image.TransformIndexToPhysicalPoint(index)
            assert (series.volume.affine @ [*index, 1])[:3] == pytest.approx([-x, -y, z], abs=1e-3)


def test_values_are_rescaled(written: Callable[..., list[Path]]) -> None:
    array = np.abs(voxels())
    files = written(array=array, modality="CT")
    for file in files:
        changed(file, lambda instance: setattr(instance, "RescaleIntercept", -1024))
    assert np.array_equal(read_series(files).volume.array, array - 1024)
    # As PET has it: every image its own slope.
    for k, file in enumerate(files):
        changed(file, lambda instance, k=k: setattr(instance, "RescaleSlope", 0.5 + k))
    found = read_series(files).volume.array
    assert found.dtype == np.float32
    assert np.allclose(found, array * (0.5 + np.arange(6)) - 1024)


def test_one_image_is_a_volume_of_one_slice(written: Callable[..., list[Path]]) -> None:
    series = read_series(written()[2:3])
    assert series.volume.array.shape == (10, 8, 1)
    assert series.volume.spacing == pytest.approx((1.5, 1.25, 4.0))


def enhanced(files: list[Path], order: list[int]) -> Dataset:
    """The images of a series as the frames of one enhanced instance, in some order."""
    parts = [pydicom.dcmread(files[k]) for k in order]
    whole = copy.deepcopy(parts[0])
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID = EnhancedMRImageStorage
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
    ):
        delattr(whole, keyword)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = parts[0].PixelSpacing, parts[0].SliceThickness
    orientation.ImageOrientationPatient = parts[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for part in parts:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = part.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = 2, 1
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    whole.NumberOfFrames = len(parts)
    whole.PixelData = b"".join(part.PixelData for part in parts)
    return whole


def test_an_enhanced_instance_is_a_volume_of_its_frames(written: Callable[..., list[Path]], tmp_path: Path) -> None:
    files, order = written(), [3, 0, 5, 1, 4, 2]
    whole = enhanced(files, order)
    whole.save_as(tmp_path / "enhanced.dcm")
    series = read_series([tmp_path / "enhanced.dcm"])
    assert np.array_equal(series.volume.array, voxels() * 2 + 1)
    assert np.allclose(series.volume.affine, AXIAL)
    assert series.geometry.sop_uids == (str(whole.SOPInstanceUID),) * 6
    assert series.geometry.frame_numbers == tuple(order.index(k) + 1 for k in range(6))
    assert series.geometry.slice_of(str(whole.SOPInstanceUID), frame=1) == 3


def drop(*keywords: str) -> Callable[[Dataset], None]:
    return lambda instance: [delattr(instance, keyword) for keyword in keywords] and None


def put(**values: Any) -> Callable[[Dataset], None]:
    return lambda instance: [setattr(instance, keyword, value) for keyword, value in values.items()] and None


def private_syntax(instance: Dataset) -> None:
    instance.file_meta.TransferSyntaxUID = "1.2.826.0.1.3680043.9.9999.1"


ONE_WRONG = {
    "geometry": (drop("ImagePositionPatient"), "no ImagePositionPatient"),
    "orientation missing": (drop("ImageOrientationPatient"), "no ImageOrientationPatient"),
    "orientation": (put(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "2 different orientations"),
    "orientation of no length": (put(ImageOrientationPatient=[0, 0, 0, 0, 1, 0]), "perpendicular unit vectors"),
    "position is no number": (put(ImagePositionPatient=[1, 2, float("nan")]), "finite numbers"),
    "position is short": (put(ImagePositionPatient=[1, 2]), "no ImagePositionPatient"),
    "spacing": (put(PixelSpacing=[3, 3]), "2 different pixel spacings"),
    "spacing of 0": (put(PixelSpacing=[0, 1]), "positive PixelSpacing"),
    "frame of reference": (put(FrameOfReferenceUID="1.2.3"), "one FrameOfReferenceUID, got 2"),
    "no frame of reference": (drop("FrameOfReferenceUID"), "one FrameOfReferenceUID, got 2"),
    "another series": (put(SeriesInstanceUID="1.2.3"), "one SeriesInstanceUID, got 2"),
    "short pixels": (lambda i: put(PixelData=i.PixelData[:-10])(i), "must have 160 bytes of pixels"),
    "long pixels": (lambda i: put(PixelData=i.PixelData + b"\0\0")(i), "must have 160 bytes of pixels"),
    "no pixels": (drop("PixelData"), "claims 8 x 10 pixels and has none"),
    "huge without pixels": (lambda i: (put(Rows=65535, Columns=65535)(i), drop("PixelData")(i))[0], "65535 x 65535"),
    "huge": (put(Rows=65535, Columns=65535), "claims 65535 x 65535"),
    "large": (put(Rows=16000, Columns=16000), "must have 512000000 bytes of pixels"),
    "no size": (drop("Rows"), "has no Rows"),
    "colour": (put(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "must be a grey image"),
    "bits": (put(BitsAllocated=12), "8, 16 or 32 bits"),
    "private transfer syntax": (private_syntax, "private transfer syntax 1.2.826.0.1.3680043.9.9999.1"),
    "frames without geometry": (lambda i: put(NumberOfFrames=2, PixelData=i.PixelData * 2)(i), "2 frames without geometry"),
    "many frames": (put(NumberOfFrames=10**9), "1 to 65536 frames"),
    "slope of 0": (put(RescaleSlope=0, RescaleIntercept=0), "finite RescaleSlope"),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_WRONG)
def test_a_series_with_one_wrong_instance_is_refused_by_name(written: Callable[..., list[Path]], name: str) -> None:
    change, sentence = ONE_WRONG[name]
    files = written()
    changed(files[3], change)
    with pytest.raises(BadInput, match=sentence):
        read_series(files)


def refusal(files: list[Path]) -> str:
    with pytest.raises(BadInput) as caught:
        read_series(files)
    return str(caught.value)


def test_a_gap_is_refused_and_named(written: Callable[..., list[Path]]) -> None:
    files = written()
    assert "gap: its images are 4 mm apart, but 8 mm after number 3 of 5" in refusal(files[:3] + files[4:])


def test_two_images_at_one_place_are_refused(written: Callable[..., list[Path]]) -> None:
    files = written()
    position = pydicom.dcmread(files[2]).ImagePositionPatient
    changed(files[3], put(ImagePositionPatient=position))
    assert "at the same position" in refusal(files)


def test_the_same_instance_twice_is_refused(written: Callable[..., list[Path]]) -> None:
    files = written()
    same = pydicom.dcmread(files[2]).SOPInstanceUID
    changed(files[3], put(SOPInstanceUID=same))
    assert f"same SOPInstanceUID {same}" in refusal(files)


def test_five_orientations_are_refused(written: Callable[..., list[Path]]) -> None:
    files = written()
    for k, angle in enumerate([0.1, 0.2, 0.3, 0.4]):
        changed(
            files[k], put(ImageOrientationPatient=[np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0])
        )
    assert "5 different orientations" in refusal(files)


def test_a_tilted_gantry_is_refused(written: Callable[..., list[Path]]) -> None:
    files = written()
    for k, file in enumerate(files):
        x, y, z = pydicom.dcmread(file).ImagePositionPatient
        changed(file, put(ImagePositionPatient=[x, float(y) + k, z]))
    assert "tilted gantry" in refusal(files)


def test_what_is_no_dicom_is_refused(written: Callable[..., list[Path]]) -> None:
    files = written()
    files[1].write_bytes(b"GIF89a" * 100)
    assert "could not be read as DICOM" in refusal(files)
    assert "no instance" in refusal([])


def test_files_cut_off_anywhere_are_refused_or_complete(written: Callable[..., list[Path]]) -> None:
    file = written()[0]
    content, whole = file.read_bytes(), read_series([file])
    for length in range(0, len(content), 37):
        file.write_bytes(content[:length])
        try:
            series: Series = read_series([file])
        except BadInput:
            continue
        assert np.array_equal(series.volume.array, whole.volume.array)


def test_compressed_pixels_that_are_not_what_they_claim_are_refused(written: Callable[..., list[Path]]) -> None:
    files = written()

    def compressed(instance: Dataset) -> None:
        instance.file_meta.TransferSyntaxUID = JPEGLossless
        instance.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8nonsense\xff\xd9"])
        instance["PixelData"].is_undefined_length = True

    changed(files[0], compressed)
    with pytest.raises(BadInput) as caught:
        read_series(files)
    assert isinstance(caught.value, NoDecoder) or "could not be decoded" in str(caught.value)
