"""Volumes keep their voxels and their place in the patient through every format, and labels must fit their image."""

import gzip
import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from datastore.labels import read_label
from datastore.volume_io import SUFFIXES, Header, Volume, read_header, read_volume, suffix_of, write_volume
from loop.errors import BadInput

SHAPE = (4, 5, 6)


def turned(x: float, z: float) -> np.ndarray:
    """Rotates about x, then about z."""
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_x)


def affine_of(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix * (0.75, 1.25, 3.5)
    affine[:3, 3] = (-120.5, 33.25, 871.0)
    return affine


AFFINES = {
    "RAS": affine_of(np.eye(3)),
    "LPS": affine_of(np.diag([-1, -1, 1])),
    "left-handed": affine_of(np.diag([1, -1, 1])),
    "sagittal": affine_of(np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])),
    "oblique": affine_of(turned(0.3, -1.1)),
    "oblique and flipped": affine_of(turned(-0.4, 2.0) @ np.diag([1, 1, -1])),
}
every_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def numbered(dtype: Any = np.int16) -> np.ndarray:
    """Voxels of which no two are alike."""
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def assert_same_place(image: sitk.Image, array: np.ndarray, affine: np.ndarray) -> None:
    """ITK's voxels and physical points (LPS) are those of the array and the affine (RAS)."""
    assert image.GetSize() == array.shape
    for index in itertools.product(*((0, 1, size - 1) for size in array.shape)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose(point, (affine @ [*index, 1])[:3], atol=1e-3)
        assert image.GetPixel(index) == array[index]


# --- round trips


@every_affine
@every_suffix
def test_volumes_come_back_as_they_were(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    path = tmp_path / f"image{suffix}"
    write_volume(path, numbered(), affine)
    volume, header = read_volume(path), read_header(path)
    np.testing.assert_array_equal(volume.array, numbered())
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(header.affine, volume.affine)
    assert header.shape == SHAPE
    assert header.spacing == volume.spacing == pytest.approx((0.75, 1.25, 3.5))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@every_affine
@every_suffix
def test_itk_sees_what_was_written_at_the_same_place(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    path = tmp_path / f"image{suffix}"
    write_volume(path, numbered(), affine)
    assert_same_place(sitk.ReadImage(str(path)), numbered(), affine)


@every_affine
@every_suffix
def test_what_itk_wrote_is_read_at_the_same_place(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    path = tmp_path / f"image{suffix}"
    image = sitk.GetImageFromArray(numbered().T)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image.SetSpacing((0.75, 1.25, 3.5))
    image.SetDirection((lps[:3, :3] / (0.75, 1.25, 3.5)).ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, str(path))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, numbered())
    assert_same_place(image, volume.array, volume.affine)


@every_affine
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_agrees_on_nifti(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_volume(ours, numbered(), affine)
    image = nib.load(ours)
    np.testing.assert_array_equal(image.dataobj, numbered())
    np.testing.assert_allclose(image.affine, affine, rtol=1e-6)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    nib.save(nib.Nifti1Image(numbered(), affine), theirs)
    np.testing.assert_array_equal(read_volume(theirs).array, numbered())
    np.testing.assert_allclose(read_volume(theirs).affine, affine, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@every_suffix
def test_the_type_of_voxels_is_kept(tmp_path: Path, suffix: str, dtype: type) -> None:
    path = tmp_path / f"image{suffix}"
    write_volume(path, np.asfortranarray(numbered(dtype)), np.eye(4))
    assert read_volume(path).array.dtype == dtype
    np.testing.assert_array_equal(read_volume(path).array, numbered(dtype))


def test_scaled_and_big_endian_nifti_is_read_in_its_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered(">f4") / 7, np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    nib.save(image, tmp_path / "scaled.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii.gz").array, numbered() / 7, atol=1e-2)


def test_an_array_of_another_layout_is_written_right(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write_volume(tmp_path / f"image{suffix}", numbered()[::-1, ::2], np.eye(4))
        np.testing.assert_array_equal(read_volume(tmp_path / f"image{suffix}").array, numbered()[::-1, ::2])


@pytest.mark.parametrize("name", ["A.NII.GZ", "a.b.NII", "A.SEG.NRRD", "x.nrrd", "X.MHA"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, numbered(), np.eye(4))
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, numbered())


@pytest.mark.parametrize("name", ["a.png", "a.nii.zip", "a", "nii.gz", "a.mhd", "a.nhdr", "a.hdr", "a.img", "a.dcm"])
def test_other_files_are_no_volumes(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"must be one of {', '.join(SUFFIXES)}, got '{name}'")):
        suffix_of(f"/folder/{name}")
    with pytest.raises(BadInput, match="must be one of"):
        write_volume(tmp_path / name, numbered(), np.eye(4))


# --- writing


@every_suffix
def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"image{suffix}"
    for before in (None, b"old"):
        if before:
            path.write_bytes(before)
        with pytest.raises(Exception, match=r".+"):
            write_volume(path, np.full(SHAPE, "text"), np.eye(4))
        assert [file.read_bytes() for file in path.parent.iterdir()] == ([before] if before else [])


def test_equal_volumes_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, numbered(), AFFINES["oblique"])
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[4:8] == bytes(4), "the time of writing is not in the file"


# --- headers


def huge_nifti() -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


NRRD = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: %s\nencoding: raw\n"
MHA = b"ObjectType = Image\nNDims = 3\nDimSize = %s\nElementType = MET_UCHAR\nBinaryData = True\n"
HUGE = {
    "a.nii": huge_nifti(),
    "a.nii.gz": gzip.compress(huge_nifti()),
    "a.nrrd": NRRD % b"30000 30000 30000" + b"\n",
    "a.mha": MHA % b"30000 30000 30000" + b"ElementDataFile = LOCAL\n",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_header_is_read_without_its_voxels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HUGE[name])
    assert read_header(path).shape == (30000, 30000, 30000)
    with pytest.raises(BadInput, match=re.escape(name)):
        read_volume(path)


@pytest.mark.parametrize("tail", [(1,), (1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path: Path, tail: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(numbered().reshape(*SHAPE, *tail), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz").shape == SHAPE
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, numbered())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2), (4, 5, 6, 1, 3)])
def test_nifti_must_be_3d(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadInput, match=f"must be a 3-D volume, got {len(shape)} dimensions"):
        read_header(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("shape", "vector", "message"),
    [((4, 5), False, "3-D"), ((2, 4, 5, 6), False, "3-D"), ((4, 5, 6, 3), True, "one value a voxel, got 3")],
)
def test_itk_formats_must_be_3d_with_one_value_a_voxel(
    tmp_path: Path, shape: tuple[int, ...], vector: bool, message: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, np.uint8), isVector=vector), str(path))
    with pytest.raises(BadInput, match=message):
        read_header(path)


@pytest.mark.parametrize(
    "dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])], ids=["complex", "colour"]
)
def test_nifti_must_hold_real_numbers(tmp_path: Path, dtype: Any) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(BadInput, match="must hold real numbers"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
def test_geometry_must_be_usable(tmp_path: Path, entry: float) -> None:
    image = nib.Nifti1Image(numbered(), np.eye(4))
    image.header["srow_x"] = (entry, 0, 0, 0)
    data = bytearray(image.to_bytes())
    data[280:296] = struct.pack("<4f", entry, 0, 0, 0)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(BadInput, match="no usable geometry"):
        read_header(tmp_path / "a.nii")


def test_spacing_is_the_length_of_the_axes() -> None:
    for affine in AFFINES.values():
        assert Header(SHAPE, affine).spacing == Volume(numbered(), affine).spacing == pytest.approx((0.75, 1.25, 3.5))


# --- files that are not what they should be

SECRET = b"secret voxels of somebody else's"


NRRD_OUTSIDE = {
    "relative": b"data file: secret.bin\n\n",
    "one word": b"datafile: secret.bin\n\n",
    "capitals": b"Data File: secret.bin\n\n",
    "absolute": b"data file: %s\n\n",
    "list": b"data file: LIST\nsecret.bin\n",
    "far down": b"# padding\n" * 9000 + b"data file: %s\n\n",
    "after a carriage return": b"# note\rdata file: %s\n\n",
}
MHA_OUTSIDE = {
    "relative": b"ElementDataFile = secret.bin\n",
    "absolute": b"ElementDataFile = %s\n",
    "list": b"ElementDataFile = LIST\nsecret.bin\n",
    "after a blank": b" ElementDataFile = secret.bin\nElementDataFile = LOCAL\n",
    "after a tab": b"\tElementDataFile = secret.bin\nElementDataFile = LOCAL\n",
    "with a colon": b"ElementDataFile: secret.bin\nElementDataFile = LOCAL\n",
    "no spaces": b"ElementDataFile=secret.bin\n",
}
OUTSIDE = [(f"a{suffix}", head, key, tail) for suffix, head, tails in (
    (".nrrd", NRRD, NRRD_OUTSIDE), (".seg.nrrd", NRRD, NRRD_OUTSIDE), (".mha", MHA, MHA_OUTSIDE)
) for key, tail in tails.items()]  # fmt: skip


@pytest.mark.parametrize(("name", "head", "tail"), [pytest.param(n, h, t, id=f"{n} {key}") for n, h, key, t in OUTSIDE])
def test_a_header_cannot_name_another_file(tmp_path: Path, name: str, head: bytes, tail: bytes) -> None:
    (tmp_path / "secret.bin").write_bytes(SECRET)
    path = tmp_path / name
    path.write_bytes(head % b"2 4 4" + tail.replace(b"%s", bytes(tmp_path / "secret.bin")) + bytes(32))
    for read in (read_header, read_volume):
        with pytest.raises(BadInput, match="must hold its own voxels"):
            read(path)


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % b"2 4 4" + b"# padding\n" * 200_000 + b"data file: secret.bin\n\n")
    with pytest.raises(BadInput, match="header of less than"):
        read_header(path)


@pytest.mark.parametrize("lines", [b"\n", b"\r\n"])
def test_own_voxels_are_read_after_any_line_end(tmp_path: Path, lines: bytes) -> None:
    for name, head in (("a.nrrd", NRRD % b"2 4 4" + b"\n"), ("a.mha", MHA % b"2 4 4" + b"ElementDataFile = LOCAL\n")):
        (tmp_path / name).write_bytes(head.replace(b"\n", lines) + bytes(range(32)))
        assert read_volume(tmp_path / name).array.ravel(order="F").tolist() == list(range(32))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("content", [".h5", ".tif", ".nii", ".vtk"])
def test_the_content_must_be_what_the_name_claims(tmp_path: Path, content: str, suffix: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbered()), str(tmp_path / f"a{content}"))
    path = (tmp_path / f"a{content}").rename(tmp_path / f"a{suffix}")
    with pytest.raises(BadInput, match=re.escape(path.name)):
        read_volume(path)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "missing", "folder"])
@every_suffix
def test_damaged_files_are_refused_by_name(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"image{suffix}"
    rng = np.random.default_rng(0)
    write_volume(path, rng.integers(0, 255, (30, 30, 30)).astype(np.uint8), np.eye(4))
    data = path.read_bytes()
    if damage in ("missing", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    if damage in ("empty", "text", "half"):
        path.write_bytes({"empty": b"", "text": b"this is no image\n" * 50, "half": data[: len(data) // 2]}[damage])
    with pytest.raises(BadInput, match=re.escape(path.name)) as caught:
        read_volume(path)
    assert str(tmp_path) not in str(caught.value), "the server's folders are nobody's business"


# --- labels

IMAGE = Header(SHAPE, AFFINES["oblique"])
VALUES = {"liver": 1, "spleen": 2, "tumour": 3}
Change = Callable[[np.ndarray], np.ndarray]


def saved_label(folder: Path, voxels: np.ndarray, affine: np.ndarray = IMAGE.affine, suffix: str = ".nii.gz") -> Path:
    write_volume(folder / f"label{suffix}", voxels, affine)
    return folder / f"label{suffix}"


def mask_of(*values: float, dtype: Any = np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask.flat[: len(values)] = values
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@every_suffix
def test_a_label_that_fits_is_read(tmp_path: Path, suffix: str, dtype: type) -> None:
    path = saved_label(tmp_path, mask_of(1, 2, 3, dtype=dtype), suffix=suffix)
    mask = read_label(path, IMAGE, VALUES)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, mask_of(1, 2, 3))


@pytest.mark.parametrize("info", [[], [{"name": "liver", "idx": 1}], [{"name": "anything", "idx": 7}]])
def test_a_label_may_be_all_background(tmp_path: Path, info: list[dict[str, Any]]) -> None:
    assert not read_label(saved_label(tmp_path, mask_of()), IMAGE, VALUES, info).any()


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (mask_of(4), "must hold 0 (background) and 1 liver, 2 spleen, 3 tumour, got the value 4"),
        (mask_of(257, dtype=np.int16), "got the value 257"),
        (mask_of(-1, dtype=np.int16), "must not be negative, got -1"),
        (mask_of(0.5, dtype=np.float32), "whole numbers, got 0.5"),
        (mask_of(np.nan, dtype=np.float32), "NaN or infinite"),
        (mask_of(np.inf, dtype=np.float64), "NaN or infinite"),
        (np.zeros((4, 5, 7), np.uint8), "must have the image's shape (4, 5, 6), got (4, 5, 7)"),
        (np.zeros((6, 5, 4), np.uint8), "must have the image's shape"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(tmp_path: Path, voxels: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read_label(saved_label(tmp_path, voxels), IMAGE, VALUES)


def test_a_label_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "label.nii.gz").write_text("no image")
    with pytest.raises(BadInput, match="could not be read"):
        read_label(tmp_path / "label.nii.gz", IMAGE, VALUES)


def shifted(mm: float) -> np.ndarray:
    affine = IMAGE.affine.copy()
    affine[0, 3] += mm
    return affine


@pytest.mark.parametrize(
    "affine",
    [IMAGE.affine.astype(np.float32), IMAGE.affine.round(4), shifted(0.009)],
    ids=["as float32", "rounded", "shifted by less than a hundredth"],
)
def test_a_label_may_differ_by_rounding(tmp_path: Path, affine: np.ndarray) -> None:
    read_label(saved_label(tmp_path, mask_of(1), affine), IMAGE, VALUES)


@pytest.mark.parametrize(
    "affine",
    [
        shifted(0.02),
        shifted(-5),
        IMAGE.affine @ np.diag([1, 1, 1.01, 1]),
        AFFINES["RAS"],
        IMAGE.affine @ np.diag([1, -1, 1, 1]),
    ],
    ids=["shifted", "far away", "stretched", "turned", "flipped"],
)
def test_a_label_must_lie_on_its_image(tmp_path: Path, affine: np.ndarray) -> None:
    with pytest.raises(BadInput, match="position and orientation"):
        read_label(saved_label(tmp_path, mask_of(1), affine), IMAGE, VALUES)


@pytest.mark.parametrize(
    ("info", "voxels", "expected"),
    [
        ([{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], [1, 2], [2, 1]),
        ([{"name": "tumour", "idx": 9}], [9, 0, 9], [3, 0, 3]),
        ([{"name": "tumour"}, {"name": "liver"}], [1, 2], [3, 1]),
        ([{"name": "liver", "idx": 2}, {"name": "tumour", "idx": 3}], [1, 2], [1, 3]),
        ([{"name": "liver", "idx": 1}, {"name": "unused", "idx": 5}], [1], [1]),
        ([{"name": "liver", "idx": 1, "color": [1, 2, 3]}], [1], [1]),
        ([], [3, 1], [3, 1]),
    ],
    ids=["idx", "idx with gaps", "no idx", "idx does not cover", "unused name", "more keys", "none"],
)
def test_voxels_are_mapped_by_the_viewers_names(
    tmp_path: Path, info: list[dict[str, Any]], voxels: list[int], expected: list[int]
) -> None:
    mask = read_label(saved_label(tmp_path, mask_of(*voxels)), IMAGE, VALUES, info)
    np.testing.assert_array_equal(mask, mask_of(*expected))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ([{"name": "kidney", "idx": 1}], "got the value 1 named 'kidney'"),
        ([{"name": "liver", "idx": 2}], "got the value 3"),
        ([{"name": "liver", "idx": "1"}], "label_info must be a list"),
        ([{"idx": 1}], "label_info must be a list"),
        (["liver"], "label_info must be a list"),
        ([{"name": "liver"}] * 256, "at most 255 classes, got 256"),
    ],
)
def test_unknown_names_and_strange_label_info_are_refused(tmp_path: Path, info: list[Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        read_label(saved_label(tmp_path, mask_of(1, 3)), IMAGE, VALUES, info)
