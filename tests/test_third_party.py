"""Tests of the stand-ins in third_party: which they are, and that no label moves between a mask and a DICOM SEG."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import highdicom
import numpy as np
import pydicom
import pydicom_seg
import pytest
import SimpleITK
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless, generate_uid
from pydicom_seg import MultiClassReader, MultiClassWriter, UnsupportedSegmentation

Array = NDArray[np.integer]

REAL_SERIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "dicom"
SHAPE = (7, 11, 13)  # planes, rows, columns: all different, and no frame fills whole bytes
SPACING = (2.5, 0.7, 0.9)
ORIGIN = np.array([-97.25, 12.5, 30.75])


def turned(x: float, y: float) -> NDArray[np.float64]:
    """Turns the axes of a series about the patient's x and y axes."""
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    return np.asarray(about_y @ about_x, dtype=np.float64)


# The columns are the directions along a row of pixels, down the rows, and along the normal.
DIRECTIONS = {
    "axial": np.eye(3),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=np.float64),
    "oblique": turned(0.19, 0.3),
}
MODALITIES = {"CT": CTImageStorage, "MR": MRImageStorage}


def block(values: Sequence[int], shape: Sequence[int] = SHAPE) -> Array:
    """Draws a box for each label value, each on other planes, rows and columns."""
    array = np.zeros(shape, dtype=np.uint16)
    for step, value in enumerate(values):
        array[1 + step : 4 + step, 2 + 3 * step : 4 + 3 * step, 1 + 2 * step : 7 + 2 * step] = value
    return array


def sparse() -> Array:
    """Draws single voxels on the outermost planes and corners, and on one in between."""
    array = np.zeros(SHAPE, dtype=np.uint16)
    array[0, 0, 0], array[-1, -1, -1], array[3, 0, -1], array[3, -1, 0] = 1, 2, 2, 1
    return array


MASKS: dict[str, Array] = {
    "one segment": block([1]),
    "two segments": block([1, 2]),
    "absent middle value": block([1, 3]),
    "absent first values": block([4]),
    "greatest value": np.where(block([1]) == 1, 255, 0).astype(np.uint16),
    "sparse": sparse(),
    "full": np.full(SHAPE, 2, dtype=np.uint16),
}


@dataclass
class Series:
    """A series on disk, and what SimpleITK makes of it."""

    folder: Path
    image: SimpleITK.Image

    def sources(self) -> list[Dataset]:
        """Reads the images without their pixels, in an order that has nothing to do with their places."""
        files = sorted(self.folder.iterdir())
        random.Random(7).shuffle(files)
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in files]

    def mask(self, array: Array) -> SimpleITK.Image:
        """Makes a mask on the grid of the series."""
        mask = SimpleITK.GetImageFromArray(array)
        mask.CopyInformation(self.image)
        return mask


def read_series(folder: Path) -> Series:
    """Reads a series as MONAI Label does."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return Series(folder, reader.Execute())


def make_image(position: NDArray[np.float64], direction: NDArray[np.float64], modality: str) -> FileDataset:
    """Makes the header of one image with only what a viewer needs."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MODALITIES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.SpecificCharacterSet = "ISO_IR 100"
    image.Modality, image.PatientID, image.PatientName = modality, "P1", "Müller^Jörg"
    image.ImagePositionPatient = [f"{value:.10g}" for value in position]
    image.ImageOrientationPatient = [f"{value:.10g}" for value in direction[:, :2].T.ravel()]
    image.PixelSpacing, image.SliceThickness = [str(SPACING[1]), str(SPACING[2])], "2"
    image.Rows, image.Columns = SHAPE[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    return image


def make_series(folder: Path, direction: NDArray[np.float64], modality: str = "MR", planes: int = SHAPE[0]) -> Series:
    """Writes a series whose files are named against their order in space; a plane's pixels hold its number."""
    uids = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    }
    folder.mkdir()
    for plane in range(planes):
        image = make_image(ORIGIN + plane * SPACING[0] * direction[:, 2], direction, modality)
        for keyword, uid in uids.items():
            setattr(image, keyword, uid)
        image.InstanceNumber = planes - plane
        image.PixelData = np.full(SHAPE[1:], plane, dtype=np.uint16).tobytes()
        image.save_as(folder / f"{planes - plane:03}.dcm", enforce_file_format=True)
    return read_series(folder)


@pytest.fixture(params=DIRECTIONS)
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Series:
    """Gives a series of each orientation."""
    return make_series(tmp_path / "series", DIRECTIONS[request.param], "CT" if request.param == "axial" else "MR")


@pytest.fixture
def oblique(tmp_path: Path) -> Series:
    """Gives the series in which a mistake about an axis shows most."""
    return make_series(tmp_path / "series", DIRECTIONS["oblique"])


@pytest.fixture(params=sorted(REAL_SERIES.glob("*/*")) or [REAL_SERIES], ids=lambda path: path.name)
def real_series(request: pytest.FixtureRequest) -> Series:
    """Gives each real series, where there are some."""
    if request.param == REAL_SERIES:
        pytest.skip(f"no DICOM series in {REAL_SERIES}")
    return read_series(request.param)


def load(name: str) -> ModuleType:
    """Imports a module of MONAI Label; torch warns about its own deprecated parts meanwhile."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        return importlib.import_module(name)


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Gives MONAI Label's conversions, which leave their results in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return load("monailabel.datastore.utils.convert")


def code(value: str, meaning: str) -> dict[str, str]:
    """Writes a coded term of SNOMED CT as a metainfo does."""
    return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}


def metainfo(labels: Sequence[int], **changes: Any) -> dict[str, Any]:
    """Describes a segment for each label, all of them with the same changes."""
    segments = [
        {
            "labelID": label,
            "SegmentLabel": f"label {label}",
            "SegmentDescription": "drawn",
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "MONAILABEL",
            "SegmentedPropertyCategoryCodeSequence": code("123037004", "Anatomical Structure"),
            "SegmentedPropertyTypeCodeSequence": code("78961009", "Spleen"),
            "recommendedDisplayRGBValue": [255, 0, 10],
        }
        | changes
        for label in labels
    ]
    return {"ContentLabel": "SEGMENTATION", "SeriesDescription": "model", "segmentAttributes": [segments]}


def present(array: Array) -> list[int]:
    """Lists the label values of a mask."""
    return [int(value) for value in np.unique(array) if value]


def write(series: Series, array: Array, labels: Sequence[int] = ()) -> Segmentation:
    """Writes a mask of the series as a SEG that describes the labels, or else those that are present."""
    template = pydicom_seg.template.from_dcmqi_metainfo(metainfo(labels or present(array)))
    return MultiClassWriter(template).write(series.mask(array), series.sources())


def saved(dataset: Dataset, tmp_path: Path) -> Dataset:
    """Sends a dataset through a file."""
    dataset.save_as(tmp_path / "seg.dcm")
    return pydicom.dcmread(tmp_path / "seg.dcm")


def read(dataset: Dataset) -> tuple[Array, SimpleITK.Image]:
    """Reads a SEG as an array and an image."""
    image = MultiClassReader().read(dataset).image
    return SimpleITK.GetArrayFromImage(image), image


def assert_same_grid(image: SimpleITK.Image, expected: SimpleITK.Image, atol: float = 1e-6) -> None:
    """Compares all that places an image."""
    assert image.GetSize() == expected.GetSize()
    np.testing.assert_allclose(image.GetSpacing(), expected.GetSpacing(), atol=atol)
    np.testing.assert_allclose(image.GetOrigin(), expected.GetOrigin(), atol=atol)
    np.testing.assert_allclose(image.GetDirection(), expected.GetDirection(), atol=atol)


# ---- The packages


@pytest.mark.parametrize(
    ("name", "ending"), [("sam2", "+none"), ("numpymaxflow", "+none"), ("pydicom-seg", "+highdicom")]
)
def test_the_stand_in_is_installed_and_not_the_package_of_its_name(name: str, ending: str) -> None:
    assert version(name).endswith(ending), f"pip install --force-reinstall --no-deps ./third_party/{name} puts it back"


@pytest.mark.parametrize("name", ["sam2", "numpymaxflow"])
def test_an_empty_stand_in_has_no_module(name: str) -> None:
    assert importlib.util.find_spec(name) is None


def test_monailabel_sees_that_sam2_is_absent() -> None:
    assert not load("monailabel.sam2.utils").is_sam2_module_available()


def test_the_price_of_the_empty_numpymaxflow_is_the_scribbles() -> None:
    with pytest.raises(ModuleNotFoundError, match="numpymaxflow"):
        load("monailabel.scribbles.infer")


# ---- There and back


@pytest.mark.parametrize("array", MASKS.values(), ids=MASKS.keys())
def test_a_mask_comes_back_voxel_by_voxel(series: Series, array: Array, tmp_path: Path) -> None:
    back, image = read(saved(write(series, array), tmp_path))
    np.testing.assert_array_equal(back, array)
    assert_same_grid(image, series.image)
    assert image.GetPixelID() == SimpleITK.sitkUInt8


def test_an_empty_mask_becomes_a_seg_of_empty_frames(series: Series, tmp_path: Path) -> None:
    empty = np.zeros(SHAPE, dtype=np.uint16)
    back, image = read(saved(write(series, empty, labels=[1, 2]), tmp_path))
    np.testing.assert_array_equal(back, empty)
    assert_same_grid(image, series.image)


def test_every_frame_lies_on_the_image_that_it_refers_to(series: Series) -> None:
    """Takes the place of each plane from the pixels of the images, so nothing here trusts our own geometry."""
    array = block([1, 2])
    planes = {
        image.SOPInstanceUID: int(image.pixel_array[0, 0]) for image in map(pydicom.dcmread, series.folder.iterdir())
    }
    positions = {image.SOPInstanceUID: image.ImagePositionPatient for image in series.sources()}
    order = SimpleITK.GetArrayFromImage(series.image)[:, 0, 0].tolist()
    seg = write(series, array)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        uid = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame, array[order.index(planes[uid])] == number)
        assert groups.PlanePositionSequence[0].ImagePositionPatient == positions[uid]
    assert len(seg.pixel_array) == 2 * SHAPE[0]


def test_highdicom_reads_the_same_volume(series: Series) -> None:
    array = block([1, 3])
    volume = highdicom.seg.Segmentation.from_dataset(write(series, array)).get_volume(combine_segments=True)
    image = SimpleITK.Resample(
        volume.to_simpleitk(), series.image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor
    )
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), array)


def test_a_mask_stored_along_other_axes_becomes_the_same_seg(series: Series) -> None:
    array = block([1, 2])
    mask = SimpleITK.PermuteAxes(SimpleITK.Flip(series.mask(array), [True, False, True]), [2, 0, 1])
    seg = MultiClassWriter(metainfo([1, 2])).write(mask, series.sources())
    np.testing.assert_array_equal(seg.pixel_array, write(series, array).pixel_array)


def test_a_series_of_one_image(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series", DIRECTIONS["oblique"], planes=1)
    series.image.SetSpacing([SPACING[2], SPACING[1], 4.0])
    array = block([1], (3, *SHAPE[1:]))[1:2]
    back, image = read(saved(write(series, array), tmp_path))
    np.testing.assert_array_equal(back, array)
    assert_same_grid(image, series.image)


# ---- What is written


def test_an_absent_value_has_an_empty_segment_and_the_others_keep_their_names(oblique: Series) -> None:
    seg = write(oblique, block([1, 3]))
    assert [(item.SegmentNumber, item.SegmentLabel) for item in seg.SegmentSequence] == [
        (1, "label 1"),
        (2, "unused 2"),
        (3, "label 3"),
    ]
    assert seg.SegmentSequence[0].SegmentAlgorithmName == "MONAILABEL"


def test_texts_survive_whatever_the_character_set_of_the_series(oblique: Series, tmp_path: Path) -> None:
    template = metainfo([1], SegmentLabel="Größe α")
    seg = saved(MultiClassWriter(template).write(oblique.mask(block([1])), oblique.sources()), tmp_path)
    assert seg.SegmentSequence[0].SegmentLabel == "Größe α"
    assert seg.PatientName == "Müller^Jörg"


def test_what_the_metainfo_tells_is_written(oblique: Series) -> None:
    texts = {"ContentCreatorName": "Reader1", "BodyPartExamined": "BRAIN", "ClinicalTrialSeriesID": "Session1"}
    numbers = {"SeriesNumber": "17", "InstanceNumber": "4"}
    seg = MultiClassWriter(metainfo([1]) | texts | numbers).write(oblique.mask(block([1])), oblique.sources())
    assert {keyword: seg[keyword].value for keyword in texts} == texts
    assert (seg.SeriesNumber, seg.InstanceNumber, seg.SeriesDescription) == (17, 4, "model")
    segment = seg.SegmentSequence[0]
    assert (segment.SegmentDescription, segment.SegmentAlgorithmType) == ("drawn", "AUTOMATIC")
    assert "RecommendedDisplayCIELabValue" in segment


def test_missing_tags_are_filled_in_the_seg_only(oblique: Series) -> None:
    sources = oblique.sources()
    before = copy.deepcopy(sources)
    seg = MultiClassWriter(metainfo([1])).write(oblique.mask(block([1])), sources)
    assert "PatientBirthDate" in seg
    assert sources == before


@pytest.mark.parametrize("tag", [None, "0.5", "25"])
def test_the_spacing_is_that_of_the_positions_whatever_the_tag_says(oblique: Series, tag: str | None) -> None:
    sources = oblique.sources()
    for image in sources:
        image.SpacingBetweenSlices, image.SliceThickness = tag, None
    back, image = read(MultiClassWriter(metainfo([1])).write(oblique.mask(sparse() // 2), sources))
    np.testing.assert_array_equal(back, sparse() // 2)
    assert_same_grid(image, oblique.image)


# ---- Through MONAI Label


# MONAI looks for a decoder of CUDA images whenever it loads a file.
no_cuda_decoder = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def through_monailabel(convert: ModuleType, series: Series, array: Array) -> SimpleITK.Image:
    """Takes a mask the way of a label: NIfTI, SEG, mask, with the image's geometry as MONAI Label converts it."""
    image = SimpleITK.ReadImage(convert.dicom_to_nifti(str(series.folder)))
    mask = SimpleITK.GetImageFromArray(array)
    mask.CopyInformation(image)
    label = str(Path(tempfile.gettempdir()) / "label.nii.gz")
    SimpleITK.WriteImage(mask, label)
    info = [{"name": f"label {value}"} for value in present(array)]
    seg = convert.nifti_to_dicom_seg(str(series.folder), label, info, use_itk=False)
    return SimpleITK.ReadImage(convert.dicom_seg_to_itk_image(seg))


@no_cuda_decoder
@pytest.mark.parametrize("name", [name for name in MASKS if name != "greatest value"])
def test_monailabel_gets_its_mask_back(convert: ModuleType, series: Series, name: str) -> None:
    image = through_monailabel(convert, series, MASKS[name])
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), MASKS[name])
    assert_same_grid(image, series.image, atol=1e-5)


@no_cuda_decoder
def test_monailabel_gets_the_mask_of_a_real_series_back(convert: ModuleType, real_series: Series) -> None:
    pixels = SimpleITK.GetArrayFromImage(real_series.image)
    array = np.digitize(pixels, np.quantile(pixels, [0.6, 0.9])).astype(np.uint16)
    array[:2], array[-1] = 0, 0
    assert present(array) == [1, 2]
    image = through_monailabel(convert, real_series, array)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), array)
    assert_same_grid(image, real_series.image, atol=1e-4)


@no_cuda_decoder
def test_monailabel_writes_no_seg_of_an_empty_mask(convert: ModuleType, oblique: Series, tmp_path: Path) -> None:
    SimpleITK.WriteImage(oblique.mask(np.zeros(SHAPE, dtype=np.uint16)), str(tmp_path / "empty.nii.gz"))
    assert convert.nifti_to_dicom_seg(str(oblique.folder), str(tmp_path / "empty.nii.gz"), [], use_itk=False) == ""


# ---- SEGs of other writers


def other_seg(series: Series, array: Array, kind: str = "BINARY", **options: Any) -> Segmentation:
    """Writes a SEG as another program would: an array of planes, rows, columns and perhaps segments."""
    planes = sorted(
        series.sources(), key=lambda image: series.image.TransformPhysicalPointToIndex(image.ImagePositionPatient)[2]
    )
    for image in planes:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(image, keyword, "")
    numbers = present(array) if array.ndim == 3 else range(1, array.shape[3] + 1)
    tissue = codes.SCT.Tissue
    segments = [SegmentDescription(number, f"segment {number}", tissue, tissue, "MANUAL") for number in numbers]
    return Segmentation(
        source_images=planes,
        pixel_array=array,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def painted_on(*planes: int) -> Array:
    """Paints a label on some planes only."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for plane in planes:
        array[plane, plane + 1, 2:9] = 1
    return array


@pytest.mark.parametrize("planes", [(0, 6), (2, 3), (1, 3, 5), (3,), (1, 2, 6), (6,)], ids=str)
def test_a_seg_of_the_painted_planes_is_a_part_of_the_volume_in_its_place(
    series: Series, planes: Sequence[int]
) -> None:
    array = painted_on(*planes)
    back, image = read(other_seg(series, array))
    part = slice(planes[0], planes[-1] + 1)
    np.testing.assert_array_equal(back, array[part])
    assert_same_grid(image, series.image[:, :, part])


def test_a_single_plane_is_as_thick_as_its_slice_when_it_tells_no_spacing(oblique: Series) -> None:
    seg = other_seg(oblique, painted_on(3))
    del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    image = read(seg)[1]
    assert image.GetSpacing()[2] == 2
    np.testing.assert_allclose(image.GetOrigin(), oblique.image.TransformIndexToPhysicalPoint((0, 0, 3)))


def test_frames_are_placed_by_position_and_not_by_order(oblique: Series) -> None:
    array = block([1, 2]).astype(np.uint8)
    seg = other_seg(oblique, array, omit_empty_frames=False)
    order = random.Random(3).sample(range(len(seg.pixel_array)), len(seg.pixel_array))
    groups = list(seg.PerFrameFunctionalGroupsSequence)
    seg.PixelData = pydicom.pixels.pack_bits(seg.pixel_array[order])
    seg.PerFrameFunctionalGroupsSequence = [groups[frame] for frame in order]
    np.testing.assert_array_equal(read(seg)[0], array)


def test_a_rounded_spacing_does_not_add_up_over_many_planes(tmp_path: Path) -> None:
    planes = 400
    series = make_series(tmp_path / "series", DIRECTIONS["oblique"], planes=planes)
    array = np.zeros((planes, *SHAPE[1:]), dtype=np.uint8)
    array[::7, 4, 5] = 1
    seg = other_seg(series, array, omit_empty_frames=False)
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "2.506"
    back, image = read(seg)
    np.testing.assert_array_equal(back, array)
    assert_same_grid(image, series.image)


@pytest.mark.parametrize("values", [[1, 2], [3, 200], [7, 300]], ids=str)
def test_a_label_map_is_read_with_its_own_numbers(oblique: Series, tmp_path: Path, values: list[int]) -> None:
    array = block(values)
    seg = other_seg(oblique, array, "LABELMAP", transfer_syntax_uid=RLELossless, omit_empty_frames=False)
    for groups in seg.PerFrameFunctionalGroupsSequence:
        del groups.FrameContentSequence  # as OHIF writes them
    back, image = read(saved(seg, tmp_path))
    np.testing.assert_array_equal(back, array)
    assert_same_grid(image, oblique.image)


# ---- What is refused: each function makes one SEG that must not be read


def overlapping(series: Series) -> Dataset:
    array = np.stack([painted_on(2, 3), painted_on(3, 4)], axis=-1)
    return other_seg(series, array)


def fractional(series: Series) -> Dataset:
    return other_seg(series, painted_on(2, 3), "FRACTIONAL")


def no_seg(series: Series) -> Dataset:
    return series.sources()[0]


def no_spacing(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 3, 5))
    del seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    return seg


def wrong_spacing(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 2, 3))
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "1.9"
    return seg


def far_apart(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 3, 5))
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "1e-9"
    return seg


def sheared(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 2, 3))
    row = np.array(seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient[:3])
    for frame, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        position = groups.PlanePositionSequence[0]
        position.ImagePositionPatient = (np.array(position.ImagePositionPatient) + 0.3 * frame * row).round(6).tolist()
    return seg


def without_position(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 2, 3))
    del seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence
    return seg


def two_orientations(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 2, 3))
    turned_plane = Dataset()
    turned_plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    seg.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [turned_plane]
    return seg


def repeated(series: Series) -> Dataset:
    seg = other_seg(series, painted_on(1, 2, 3))
    seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence = seg.PerFrameFunctionalGroupsSequence[
        0
    ].PlanePositionSequence
    return seg


def renumbered(series: Series) -> Dataset:
    """As OHIF 3.13 exports segments 1 and 3 as BINARY: described as 1 and 2, with frames of 1 and 3."""
    seg = other_seg(series, np.where(block([1, 3]) > 0, block([1, 2]), 0).astype(np.uint8))
    for groups in seg.PerFrameFunctionalGroupsSequence:
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 3
    return seg


def undescribed(series: Series) -> Dataset:
    seg = other_seg(series, block([1, 2]), "LABELMAP")
    del seg.SegmentSequence[2]
    return seg


def padded(series: Series) -> Dataset:
    seg = other_seg(series, block([1, 2]), "LABELMAP")
    seg.PixelPaddingValue = 2
    return seg


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (overlapping, "must not overlap.*segment 1 and in 2"),
        (fractional, "BINARY or LABELMAP.*FRACTIONAL"),
        (no_seg, "must be a DICOM SEG"),
        (no_spacing, "must tell its SpacingBetweenSlices"),
        (wrong_spacing, "whole multiples of 1.9 mm"),
        (far_apart, "less than 10000 places"),
        (sheared, "stacked straight"),
        (without_position, "PlanePositionSequence.*frame 2"),
        (two_orientations, "the same ImageOrientationPatient"),
        (repeated, "one frame for a plane"),
        (renumbered, r"\[3\] where \[1, 2\] are described"),
        (undescribed, r"\[2\] where \[1\] are described"),
        (padded, "PixelPaddingValue 2"),
    ],
)
def test_a_seg_that_could_become_a_wrong_mask_is_refused(
    oblique: Series, make: Callable[[Series], Dataset], message: str
) -> None:
    with pytest.raises(UnsupportedSegmentation, match=message):
        MultiClassReader().read(make(oblique))


def shifted(mask: SimpleITK.Image) -> SimpleITK.Image:
    mask.SetOrigin((np.array(mask.GetOrigin()) + 0.2).tolist())
    return mask


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shifted, "voxel grid of the source images"),
        (lambda mask: mask[:, :, 1:], "voxel grid of the source images"),
        (lambda mask: SimpleITK.ConstantPad(mask, [0, 0, 0], [0, 0, 1]), "voxel grid of the source images"),
        (lambda mask: SimpleITK.Cast(mask, SimpleITK.sitkFloat32), "whole number"),
        (lambda mask: mask[:, :, 1], "2D"),
        (lambda mask: SimpleITK.Cast(mask, SimpleITK.sitkInt16) - 1, r"\[-1\]"),
        (lambda mask: mask * 256, r"\[256\]"),
        (lambda mask: mask * 2, r"\[2\] where \[1\] are described"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(
    oblique: Series, change: Callable[[SimpleITK.Image], SimpleITK.Image], message: str
) -> None:
    with pytest.raises(UnsupportedSegmentation, match=message):
        MultiClassWriter(metainfo([1])).write(change(oblique.mask(block([1]))), oblique.sources())


def with_change(keyword: str, value: object) -> Callable[[list[Dataset]], list[Dataset]]:
    """Changes an attribute of one image of a series."""

    def change(sources: list[Dataset]) -> list[Dataset]:
        setattr(sources[2], keyword, value)
        return sources

    return change


def one_missing(sources: list[Dataset]) -> list[Dataset]:
    """Takes out an image from the middle of the volume."""
    return [image for image in sources if image.InstanceNumber != 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "0 images"),
        (one_missing, "one image for each plane"),
        (lambda sources: [*sources, sources[0]], "one image for each plane"),
        (lambda sources: sources[:1] * 3, "one image for each plane"),
        (with_change("SeriesInstanceUID", "1.2.3"), "SeriesInstanceUID"),
        (with_change("FrameOfReferenceUID", None), "FrameOfReferenceUID"),
        (with_change("Rows", 12), "Rows"),
        (with_change("NumberOfFrames", 3), "1 of them multi-frame"),
        (with_change("ImagePositionPatient", [0, 0, 0]), "whole multiples|stacked straight"),
        (with_change("ImagePositionPatient", None), "ImagePositionPatient"),
        (with_change("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), "the same ImageOrientationPatient"),
        (with_change("PixelSpacing", [0.7, 0]), "PixelSpacing"),
    ],
)
def test_images_that_are_no_volume_are_refused(
    oblique: Series, change: Callable[[list[Dataset]], list[Dataset]], message: str
) -> None:
    with pytest.raises(UnsupportedSegmentation, match=message):
        MultiClassWriter(metainfo([1])).write(oblique.mask(block([1])), change(oblique.sources()))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({}, "segmentAttributes"),
        ({"segmentAttributes": []}, "one list in a list"),
        ({"segmentAttributes": [[]]}, "one list in a list"),
        (metainfo([1]) | {"SeriesDate": "20200101"}, "unknown .'SeriesDate'"),
        (metainfo([0]), "from 1 to 255"),
        (metainfo([256]), "from 1 to 255"),
        (metainfo([1, 1]), "different whole number"),
        (metainfo([1], AnatomicRegionSequence=code("78961009", "Spleen")), "unknown .'AnatomicRegionSequence'"),
        (metainfo([1], SegmentLabel=""), "1 to 64"),
        (metainfo([1], SegmentAlgorithmType="AUTO"), "AUTOMATIC, SEMIAUTOMATIC, MANUAL"),
        (metainfo([1], SegmentAlgorithmName=None), "SegmentAlgorithmName"),
        (metainfo([1], SegmentedPropertyTypeCodeSequence={"CodeValue": "78961009"}), "missing .'CodeMeaning'"),
    ],
)
def test_a_description_that_would_not_be_written_in_full_is_refused(template: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedSegmentation, match=message):
        pydicom_seg.template.from_dcmqi_metainfo(template)


@pytest.mark.parametrize("option", ["inplane_cropping", "skip_empty_slices", "skip_missing_segment"])
def test_options_that_lose_voxels_are_refused(option: str) -> None:
    with pytest.raises(UnsupportedSegmentation, match="must be False"):
        MultiClassWriter(metainfo([1]), **{option: True})
