"""DICOM SEG: what is written is read back voxel by voxel, by us and by others; what does not fit is refused by name."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedMRImageStorage, RLELossless

from bench.dicom_phantom import Study, uid, write_series
from dicom.geometry import SeriesGeometry
from dicom.seg_reader import ReadSeg, read_seg
from dicom.seg_writer import Author, Kind, write_seg
from dicom.segments import concepts, match
from dicom.series import Series, read_series
from loop.errors import BadInput

ANN = Author("ann", datetime(2026, 1, 2, 3, 4, 5))
MODEL = Author("unet2d", datetime(2026, 1, 2, 3, 4, 5), "4f1d2c")
NAMES = {"Liver": 1, "left ventricle": 2, "thing 3": 3, "Läsion": 4, "x" * 80: 5}
SHAPE = (51, 35, 6)
"""Odd, and no multiple of 8 pixels: bits of a frame begin within a byte."""
_TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
ORIENTATIONS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "coronal": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "oblique": _TURN,
    "feet first": np.diag([1.0, -1.0, -1.0]),
    "flipped": np.diag([-1.0, 1.0, 1.0]),
}
KINDS: tuple[Kind, ...] = ("labelmap", "binary")


def _series(
    folder: Path, turn: str = "axial", *, backwards: bool = False, shape: tuple[int, int, int] = SHAPE
) -> Series:
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[turn] * [0.9, 1.3, 2.7]
    affine[:3, 3] = 11.5, -23.25, 37.125
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    files = write_series(folder, array, affine, Study("patient 1", series=turn))
    if backwards:
        for number, file in enumerate(files):
            instance = pydicom.dcmread(file)
            instance.InstanceNumber = len(files) - number
            instance.save_as(file)
        files = files[::-1]
    return read_series(files)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> SeriesGeometry:
    return _series(tmp_path_factory.mktemp("series")).geometry


def _mask(classes: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, classes + 1, shape).astype(np.uint8)


def _values(classes: int) -> dict[str, int]:
    return dict(list(NAMES.items())[:classes])


def _kept(folder: Path, content: bytes) -> Path:
    target = folder / "seg.dcm"
    target.write_bytes(content)
    return target


def _changed(folder: Path, content: bytes, change: Callable[[Dataset], Any]) -> Path:
    target = _kept(folder, content)
    seg = pydicom.dcmread(target)
    change(seg)
    seg.save_as(target)
    return target


# --- there and back


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_every_orientation_comes_back_voxel_by_voxel(tmp_path: Path, turn: str, backwards: bool, kind: Kind) -> None:
    series = _series(tmp_path / "series", turn, backwards=backwards)
    mask = _mask(2)
    written = write_seg(mask, series.geometry, _values(2), ANN, kind=kind)
    found = read_seg(_kept(tmp_path, written.content), series.geometry)
    assert np.array_equal(found.voxels, mask)
    assert found.written == found.painted == tuple(range(6))
    # By somebody else's reader, in space: the voxel that we call (i, j, k) is at the place of the series' voxel (i, j, k).
    theirs = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True, relabel=False)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    at = np.argwhere(mask == 2)[::97]
    places = lps @ series.volume.affine @ np.c_[at, np.ones(len(at))].T
    index = np.rint(np.linalg.inv(theirs.affine) @ places)[:3].astype(int)
    assert (theirs.array[tuple(index)] == 2).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5])
def test_one_to_five_labels_full_sparse_and_empty(
    tmp_path: Path, geometry: SeriesGeometry, classes: int, kind: Kind
) -> None:
    full = _mask(classes, seed=classes)
    full[:, :, 3] = 0
    for mask, slices in ((full, None), (full, [1, 3, 4]), (np.zeros_like(full), None), (np.zeros_like(full), [2])):
        written = write_seg(mask, geometry, _values(classes), ANN, kind=kind, slices=slices)
        found = read_seg(_kept(tmp_path, written.content), geometry)
        asked = slices or list(range(6))
        expected = np.zeros_like(mask)
        expected[:, :, asked] = mask[:, :, asked]
        assert np.array_equal(found.voxels, expected)
        assert found.written == tuple(asked)
        assert found.painted == tuple(k for k in asked if mask[:, :, k].any())
        assert list(found.segments.values()) == [name[:64] for name in _values(classes)]
        info = match(found.segments, np.unique(found.voxels)[1:].tolist(), _values(classes))
        assert all(_values(classes)[entry["name"]] == entry["idx"] for entry in info)


def test_it_says_who_when_and_of_what(tmp_path: Path, geometry: SeriesGeometry) -> None:
    by_hand = write_seg(_mask(2), geometry, _values(2), ANN)
    seg = pydicom.dcmread(_kept(tmp_path, by_hand.content))
    assert (seg.PatientID, str(seg.PatientName), seg.StudyDate) == ("patient 1", "Phantom^patient 1", "20240115")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (geometry.study_uid, geometry.frame_of_reference_uid)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == geometry.series_uid
    assert (seg.SeriesDescription, seg.ContentDate, seg.ContentTime) == (
        "NextSlice annotator ann",
        "20260102",
        "030405",
    )
    assert [item.SegmentAlgorithmType for item in seg.SegmentSequence] == ["MANUAL"] * 2
    found = read_seg(tmp_path / "seg.dcm", geometry)
    assert (found.creator, found.date, found.time) == ("ann", "20260102", "030405")
    by_model = pydicom.dcmread(_kept(tmp_path, write_seg(_mask(2), geometry, _values(2), MODEL).content))
    assert by_model.SeriesDescription == f"NextSlice model unet2d {MODEL.version[:8]}"
    assert by_model.SegmentSequence[1].SegmentAlgorithmType == "AUTOMATIC"
    assert by_model.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "4f1d2c"


def test_the_same_mask_is_the_same_instance_and_another_one_is_not(geometry: SeriesGeometry) -> None:
    one, other = _mask(2), _mask(2, seed=1)
    assert write_seg(one, geometry, _values(2), ANN) == write_seg(one, geometry, _values(2), ANN)
    uids = {write_seg(mask, geometry, _values(2), who).sop_uid for mask in (one, other) for who in (ANN, MODEL)}
    assert len(uids) == 4
    later = replace(MODEL, at=datetime(2026, 5, 6))
    assert write_seg(one, geometry, _values(2), later).sop_uid in uids
    assert write_seg(one, geometry, _values(2), replace(later, version="other")).sop_uid not in uids


def test_a_source_without_texts_or_with_wrong_ones_is_no_hindrance(tmp_path: Path, geometry: SeriesGeometry) -> None:
    header = {"00100030": {"vr": "DA", "Value": ["long ago"]}, "00080050": {"vr": "SH", "Value": ["x" * 90]}, "no": 1}
    for changed in ({}, header):
        bare = SeriesGeometry(**{**vars(geometry), "header": changed})
        found = read_seg(_kept(tmp_path, write_seg(_mask(1), bare, _values(1), ANN).content), bare)
        assert np.array_equal(found.voxels, _mask(1))


def test_structures_that_dicom_lists_have_their_codes() -> None:
    assert [part.value for part in concepts("left ventricle")] == ["123037004", "87878005"]
    assert concepts("spleen")[1].meaning == "Spleen"
    assert {part.value for part in concepts("structure_1")} == {part.value for part in concepts("")} == {"85756007"}


def test_frames_of_a_multi_frame_source_are_referred_to_by_number(tmp_path: Path, geometry: SeriesGeometry) -> None:
    numbers = (6, 5, 4, 3, 2, 1)
    source = SeriesGeometry(
        **{
            **vars(geometry),
            "sop_uids": (uid("enhanced"),) * 6,
            "frame_numbers": numbers,
            "sop_class_uid": EnhancedMRImageStorage,
        }
    )
    content = write_seg(_mask(2), source, _values(2), ANN, slices=[1, 4]).content
    seg = pydicom.dcmread(_kept(tmp_path, content))
    items = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in seg.PerFrameFunctionalGroupsSequence]
    assert {(item.ReferencedSOPInstanceUID, item.ReferencedFrameNumber) for item in items} == {
        (uid("enhanced"), 5),
        (uid("enhanced"), 2),
    }
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for without in ([], ["PlanePositionSequence"], ["DerivationImageSequence"]):
        file = _changed(tmp_path, content, lambda seg, without=without: _without(seg, without))
        found = read_seg(file, source)
        assert found.written == (1, 4)
        assert np.array_equal(found.voxels[:, :, [1, 4]], _mask(2)[:, :, [1, 4]])


def _without(seg: Dataset, sequences: list[str]) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        for sequence in sequences:
            del group[sequence]


@pytest.mark.parametrize("lost", ["PlanePositionSequence", "DerivationImageSequence"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_seg_is_put_back_by_reference_or_by_position_alone(
    tmp_path: Path, geometry: SeriesGeometry, lost: str, kind: Kind
) -> None:
    content = write_seg(_mask(3), geometry, _values(3), ANN, slices=[0, 4], kind=kind).content
    found = read_seg(_changed(tmp_path, content, lambda seg: _without(seg, [lost])), geometry)
    assert found.written == (0, 4)
    assert np.array_equal(found.voxels[:, :, [0, 4]], _mask(3)[:, :, [0, 4]])


# --- as OHIF makes them


def _ohif(seg: Dataset) -> None:
    """As OHIF's export: no FrameContentSequence, an instance referred to once a frame, names as in the viewer."""
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group["FrameContentSequence"]
    referred = seg.ReferencedSeriesSequence[0]
    referred.ReferencedInstanceSequence = [*referred.ReferencedInstanceSequence, *referred.ReferencedInstanceSequence]
    seg.SeriesDescription, seg.SeriesNumber, seg.ContentLabel = "Research Derived series", 99, "SEGMENTATION"


def test_ohifs_label_map_which_highdicom_cannot_read(tmp_path: Path, geometry: SeriesGeometry) -> None:
    mask = _mask(3)
    mask[mask == 2] = 0  # described, not painted
    content = write_seg(mask, geometry, _values(3), ANN, slices=[2, 5]).content
    file = _changed(tmp_path, content, _ohif)
    with pytest.raises(AttributeError):
        highdicom.seg.segread(file)
    found = read_seg(file, geometry)
    assert found.painted == (2, 5)
    assert np.array_equal(found.voxels[:, :, 5], mask[:, :, 5])
    assert len(found.segments) == 3


@pytest.mark.parametrize("painted", [[3], [1, 3], [2, 3]])
def test_ohifs_binary_seg_whose_segments_are_renumbered_but_not_its_frames(
    tmp_path: Path, geometry: SeriesGeometry, painted: list[int]
) -> None:
    mask = _mask(3)
    mask[~np.isin(mask, painted)] = 0
    compact = np.searchsorted([0, *painted], mask).astype(np.uint8)
    names = {name: number for number, name in enumerate(np.array(list(NAMES))[np.array(painted) - 1].tolist(), 1)}
    content = write_seg(compact, geometry, names, ANN, slices=[1, 2], kind="binary").content

    def renumber(seg: Dataset) -> None:
        _ohif(seg)
        shared = seg.SharedFunctionalGroupsSequence[0]  # of a single segment, highdicom says its number there
        for group in [shared] if len(painted) == 1 else seg.PerFrameFunctionalGroupsSequence:
            item = group.SegmentIdentificationSequence[0]
            item.ReferencedSegmentNumber = painted[item.ReferencedSegmentNumber - 1]

    found = read_seg(_changed(tmp_path, content, renumber), geometry)
    info = match(found.segments, range(1, len(painted) + 1), NAMES)
    ours = np.zeros_like(found.voxels)
    for entry in info:
        ours[found.voxels == entry["idx"]] = NAMES[entry["name"]]
    assert np.array_equal(ours[:, :, 1:3], mask[:, :, 1:3])


def test_a_binary_seg_in_bytes(tmp_path: Path, geometry: SeriesGeometry) -> None:
    """As viewers compress it: RLE knows no bits."""
    content = write_seg(_mask(2), geometry, _values(2), ANN, kind="binary").content

    def compress(seg: Dataset) -> None:
        frames = pydicom.pixels.pixel_array(seg)
        seg.BitsAllocated = seg.BitsStored = 8
        seg.HighBit = 7
        seg.PixelData = frames.tobytes()
        seg.compress(RLELossless, generate_instance_uid=False)

    found = read_seg(_changed(tmp_path, content, compress), geometry)
    assert np.array_equal(found.voxels, _mask(2))


# --- names


def test_segments_are_our_labels_by_name_then_by_number() -> None:
    ours = {"Left Ventricle": 1, "lesion": 2}
    assert match({1: "LESION", 2: "left_ventricle"}, [1, 2], ours) == [
        {"name": "lesion", "idx": 1},
        {"name": "Left Ventricle", "idx": 2},
    ]
    assert match({2: "Segment 2", 7: "Background", 8: "annotate_here"}, [2, 7, 8], ours) == [
        {"name": "lesion", "idx": 2}
    ]
    assert match({1: "lesion", 2: "liver"}, [1], ours) == [{"name": "lesion", "idx": 1}]


@pytest.mark.parametrize(
    ("segments", "painted", "reason"),
    [
        ({1: "liver"}, [1], "named as the labels .Left Ventricle, lesion., got segment 1 named 'liver'"),
        ({3: "Segment 3"}, [3], "got segment 3"),
        ({1: "lesion"}, [2], "voxels of segment 2 without a description"),
        ({1: "lesion", 2: "Segment 2"}, [1, 2], "one segment of each label, got 1 and 2 of 'lesion'"),
    ],
)
def test_segments_that_are_none_of_ours(segments: dict[int, str], painted: list[int], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        match(segments, painted, {"Left Ventricle": 1, "lesion": 2})


# --- what is refused


def _first(seg: Dataset) -> Dataset:
    return seg.PerFrameFunctionalGroupsSequence[0]


def _refer_to(sop_uid: str) -> Callable[[Dataset], None]:
    def change(seg: Dataset) -> None:
        _first(seg).DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = sop_uid

    return change


def _set(**elements: object) -> Callable[[Dataset], None]:
    return lambda seg: [setattr(seg, keyword, value) for keyword, value in elements.items()] and None


def _turn(seg: Dataset) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, 1]


def _squeeze(seg: Dataset) -> None:
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [5, 5]


def _shift(seg: Dataset) -> None:
    position = _first(seg).PlanePositionSequence[0]
    position.ImagePositionPatient = [value + 1.2 for value in position.ImagePositionPatient]


def _swap(seg: Dataset) -> None:
    groups = seg.PerFrameFunctionalGroupsSequence
    one, other = (groups[n].PlanePositionSequence[0] for n in (0, 1))
    one.ImagePositionPatient, other.ImagePositionPatient = other.ImagePositionPatient, one.ImagePositionPatient


def _nowhere(seg: Dataset) -> None:
    del _first(seg)["PlanePositionSequence"], _first(seg)["DerivationImageSequence"]


def _double(seg: Dataset) -> None:
    groups = list(seg.PerFrameFunctionalGroupsSequence)
    seg.PerFrameFunctionalGroupsSequence = [groups[0], groups[0], *groups[2:]]


def _overlap(seg: Dataset) -> None:
    seg.PixelData = b"\xff" * len(seg.PixelData)


def _text_for_number(seg: Dataset) -> None:
    _first(seg).PlanePositionSequence[0].ImagePositionPatient = [1, 2]


def _other_frames(seg: Dataset) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber += 1
    _first(seg).SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


WRONG: list[tuple[Callable[[Dataset], Any], str]] = [
    (_set(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "must be a DICOM SEG, got MR Image Storage"),
    (_set(SegmentationType="FRACTIONAL"), "must be BINARY or LABELMAP, got FRACTIONAL"),
    (_set(FrameOfReferenceUID="1.2.3"), "frame of reference .* got 1.2.3"),
    (_set(Rows=51, Columns=35), "35 rows and 51 columns of the series, got 51 and 35"),
    (_set(Rows=65535, Columns=65535), "got 65535 and 65535"),
    (_set(NumberOfFrames=10**6), "claims 1000000 frames, and says where 12 of them are"),
    (_set(PixelData=b"\0" * 100), "bytes of pixels .12 frames of 35 x 51., got 100"),
    (_set(BitsAllocated=32), "cannot have 32 bits"),
    (_set(PixelRepresentation=1), "unsigned"),
    (_set(SegmentSequence=[]), "at most a frame for each of 6 slices and segments, got 12"),
    (lambda seg: delattr(seg, "PixelData"), "has no pixels"),
    (lambda seg: delattr(seg, "PerFrameFunctionalGroupsSequence"), "says where 0 of them are"),
    (lambda seg: delattr(seg.SegmentSequence[0], "SegmentNumber"), "is damaged"),
    (lambda seg: setattr(seg.SegmentSequence[1], "SegmentNumber", 1), "describes segment 1 twice"),
    (_refer_to("1.2.3.4"), "Frame 1 .* refers to the image '1.2.3.4', which is not in this series"),
    (_turn, "must have the orientation of the series"),
    (_squeeze, "must have the PixelSpacing of the series"),
    (_shift, "must begin at a slice's first voxel"),
    (_swap, "refers to the image of slice 5, but lies at slice 4|refers to the image of slice 0, but lies at slice 1"),
    (_nowhere, "must refer to the one image it was drawn on, or have a position"),
    (_double, "two frames of segment 1 for slice"),
    (_overlap, "must not overlap"),
    (_text_for_number, "ImagePositionPatient of three numbers"),
    (_other_frames, "are of the segments"),
]


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_what_is_no_seg_of_this_series_is_refused_with_the_reason(
    tmp_path: Path, geometry: SeriesGeometry, change: Callable[[Dataset], Any], reason: str
) -> None:
    content = write_seg(_mask(2), geometry, _values(2), ANN, kind="binary").content
    with pytest.raises(BadInput, match=reason):
        read_seg(_changed(tmp_path, content, change), geometry)


def test_a_label_map_with_two_frames_for_one_slice_or_a_frame_too_many(
    tmp_path: Path, geometry: SeriesGeometry
) -> None:
    content = write_seg(_mask(2), geometry, _values(2), ANN).content
    with pytest.raises(BadInput, match="two frames for slice"):
        read_seg(_changed(tmp_path, content, _double), geometry)
    one_more = write_seg(_mask(2), geometry, _values(2), ANN, slices=[0, 1]).content
    with pytest.raises(BadInput, match="frame"):
        read_seg(_changed(tmp_path, one_more, lambda seg: _claim_one_less(seg)), geometry)


def _claim_one_less(seg: Dataset) -> None:
    seg.NumberOfFrames = 1
    seg.PerFrameFunctionalGroupsSequence = list(seg.PerFrameFunctionalGroupsSequence)[:1]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_or_damaged_anywhere_it_is_refused_or_read_but_nothing_else(
    tmp_path: Path, geometry: SeriesGeometry, kind: Kind
) -> None:
    content = write_seg(_mask(2), geometry, _values(2), ANN, kind=kind).content
    rng = np.random.default_rng(0)
    for cut in [0, 1, 131, 132, 200, *rng.integers(300, len(content) - 1, 20).tolist()]:
        with pytest.raises(BadInput):
            read_seg(_kept(tmp_path, content[:cut]), geometry)
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 8).tolist():
            damaged[place] = int(rng.integers(256))
        with contextlib.suppress(BadInput):
            assert isinstance(read_seg(_kept(tmp_path, bytes(damaged)), geometry), ReadSeg)


def test_no_dicom_and_a_deflated_one_are_refused_before_they_are_unpacked(
    tmp_path: Path, geometry: SeriesGeometry
) -> None:
    with pytest.raises(BadInput, match="cannot be read as DICOM"):
        read_seg(_kept(tmp_path, b"no DICOM" * 100), geometry)
    content = write_seg(_mask(2), geometry, _values(2), ANN, kind="binary").content

    def deflate(seg: Dataset) -> None:
        seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with pytest.raises(BadInput, match="got the transfer syntax Deflated"):
        read_seg(_changed(tmp_path, content, deflate), geometry)


@pytest.mark.parametrize(
    ("mask", "values", "options", "reason"),
    [
        (np.zeros((5, 5, 5), np.uint8), {"a": 1}, {}, "shape"),
        (np.full(SHAPE, 3, np.uint8), {"a": 1}, {}, "got 3"),
        (np.zeros(SHAPE, np.uint8), {"a": 2}, {"kind": "binary"}, "without gaps"),
        (np.zeros(SHAPE, np.uint8), {"a": 1}, {"slices": [6]}, "some of 0 to 5"),
        (np.zeros(SHAPE, np.uint8), {"a": 1}, {"slices": []}, "some of 0 to 5"),
    ],
)
def test_what_cannot_be_written(
    geometry: SeriesGeometry, mask: npt.NDArray[np.uint8], values: dict[str, int], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        write_seg(mask, geometry, values, ANN, **options)


# --- checked by others

KNOWN = (
    # dicom3tools of 2022 does not know the storage class, which is younger.
    "Error - Information Object Not found",
)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("author", [ANN, MODEL], ids=["annotator", "model"])
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(tmp_path: Path, geometry: SeriesGeometry, kind: Kind, author: Author) -> None:
    for mask, slices in ((_mask(5), None), (_mask(5), [1, 4]), (np.zeros(SHAPE, np.uint8), [3])):
        file = _kept(tmp_path, write_seg(mask, geometry, NAMES, author, kind=kind, slices=slices).content)
        told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, timeout=60).stderr
        errors = [line for line in told.splitlines() if line.startswith("Error")]
        assert [line for line in errors if line not in KNOWN] == []
        assert kind == "labelmap" or "Segmentation" in told


@pytest.mark.skipif(not shutil.which("dcmdump"), reason="dcmdump (dcmtk) is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_reads_it(tmp_path: Path, geometry: SeriesGeometry, kind: Kind) -> None:
    file = _kept(tmp_path, write_seg(_mask(2), geometry, _values(2), ANN, kind=kind, slices=[1, 4]).content)
    told = subprocess.run(["dcmdump", "+P", "SegmentLabel", str(file)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0
    assert told.stderr == ""
    assert "[Liver]" in told.stdout
    assert "[left ventricle]" in told.stdout
