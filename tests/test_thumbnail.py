"""What a thumbnail shows and which way up, and slices of files without their other voxels."""

import io
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from datastore.volume_io import read_slice, read_volume, write_volume
from loop.errors import BadInput
from server.slices import PictureCache, SliceReader
from server.thumbnail import CLASS_COLOURS, Layers, draw, png

SHAPE = (12, 10, 8)
RAS = np.diag([2.0, 2.0, 2.0, 1.0])
TURNS = [
    np.array(list(zip(order, signs, strict=True)))
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def patient() -> np.ndarray:
    """One bright corner: right, front, top."""
    volume = np.zeros(SHAPE, np.int16)
    volume[8:, 7:, 6:] = 1000
    return volume


def brightest(picture: Image.Image) -> tuple[str, str]:
    """Which side of a picture its bright part is on."""
    grey = np.asarray(picture.convert("L"), float)
    rows, columns = (np.arange(n) @ grey.sum(1 - axis) / grey.sum() for axis, n in enumerate(grey.shape))
    return "top" if rows < grey.shape[0] / 2 else "bottom", "left" if columns < grey.shape[1] / 2 else "right"


@pytest.mark.parametrize(("axis", "index"), [(2, 7), (1, 9), (0, 11)], ids=["axial", "coronal", "sagittal"])
def test_a_slice_of_any_orientation_looks_as_radiologists_expect(axis: int, index: int) -> None:
    plane = np.take(patient(), index, axis)
    expected = draw(Layers(plane), RAS, axis, 64)
    # The patient's right is on the left; of a sagittal slice, the front.
    assert brightest(expected) == ("top", "left")
    for turn in TURNS:
        turned = nib.Nifti1Image(patient(), RAS).as_reoriented(turn)
        where = int(turn[axis, 0])
        at = index if turn[axis, 1] > 0 else SHAPE[axis] - 1 - index
        other = draw(Layers(np.take(np.asarray(turned.dataobj), at, where)), turned.affine, where, 64)
        np.testing.assert_array_equal(np.asarray(other), np.asarray(expected))


def test_an_oblique_volume_is_shown_as_its_nearest_plane() -> None:
    angle = np.radians(20)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = RAS.copy()
    oblique[:3, :3] = tilt @ RAS[:3, :3]
    plane = Layers(patient()[:, :, 7])
    np.testing.assert_array_equal(np.asarray(draw(plane, oblique, 2, 48)), np.asarray(draw(plane, RAS, 2, 48)))


def test_proportions_are_those_of_the_patient() -> None:
    affine = np.diag([1.0, 3.0, 5.0, 1.0])
    assert draw(Layers(np.zeros((30, 20))), affine, 2, 120).size == (60, 120)
    assert draw(Layers(np.zeros((30, 12))), affine, 1, 120).size == (60, 120)
    assert draw(Layers(np.zeros((1, 400))), np.eye(4), 2, 100).size == (1, 100), "never less than a pixel"


def test_layers_are_drawn_where_they_are() -> None:
    classes = np.zeros((64, 64), np.uint8)
    classes[10:30, 10:30], classes[40:60, 40:60] = 1, 2
    grey = np.tile(np.linspace(0, 100, 64), (64, 1))
    plain, contour, label = (
        np.asarray(draw(layers, np.diag([-1.0, -1.0, 1.0, 1.0]), 2, 64)).astype(int)
        for layers in (Layers(grey), Layers(grey, contour=classes), Layers(grey, label=classes))
    )
    rows_are_second = classes.T
    edge, inside = (10, 15), (20, 20)
    assert tuple(contour[edge]) == CLASS_COLOURS[0]
    assert tuple(contour[40, 50]) == CLASS_COLOURS[1]
    np.testing.assert_array_equal(contour[inside], plain[inside])
    assert (label[rows_are_second == 0] == plain[rows_are_second == 0]).all()
    assert (label[rows_are_second > 0] != plain[rows_are_second > 0]).any(axis=1).all()
    heat = np.zeros((64, 64), np.uint8)
    heat[:32] = 255
    hot = np.asarray(draw(Layers(np.zeros((64, 64)), heat=heat), np.diag([-1.0, -1.0, 1.0, 1.0]), 2, 64)).astype(int)
    assert (hot[:, :30] > 150)[..., :2].all()
    assert (hot[:, 34:] == 0).all()


@pytest.mark.parametrize(
    "voxels", [np.full((5, 6), 7), np.full((5, 6), np.nan), np.zeros((1, 1)), np.eye(6, dtype=bool)]
)
def test_any_slice_can_be_drawn(voxels: np.ndarray) -> None:
    picture = Image.open(io.BytesIO(png(draw(Layers(voxels), np.eye(4), 2, 32))))
    assert max(picture.size) == 32


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_slice_is_that_of_the_volume(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"volume{suffix}"
    write_volume(file, np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16), RAS)
    whole, read = read_volume(file).array, SliceReader()
    for axis, index in itertools.product(range(3), (0, 3, 7)):
        np.testing.assert_array_equal(read_slice(file, axis, index), np.take(whole, index, axis))
        np.testing.assert_array_equal(read(file, axis, index), np.take(whole, index, axis))
    for index in (-1, SHAPE[2]):
        with pytest.raises(BadInput, match="has slices 0 to 7"):
            read_slice(file, 2, index)


def test_scaled_voxels_and_a_fourth_axis_of_one(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4, 1), RAS)
    image.header.set_slope_inter(0.5, -3)
    file = tmp_path / "scaled.nii"
    file.write_bytes(image.to_bytes())
    np.testing.assert_allclose(read_slice(file, 1, 2), read_volume(file).array[:, 2])


def test_of_an_uncompressed_file_only_the_slice_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cut.nii"
    write_volume(file, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), RAS)
    first = read_volume(file).array[:, :, 0]
    file.write_bytes(file.read_bytes()[: 352 + 2 * 12 * 10 * 3])
    np.testing.assert_array_equal(read_slice(file, 2, 0), first)
    with pytest.raises(BadInput):
        read_slice(file, 2, 7)


def test_decoded_volumes_leave_memory_when_it_is_full(tmp_path: Path) -> None:
    read = SliceReader(memory=2 * 2 * 12 * 10 * 8)
    for number in range(4):
        write_volume(tmp_path / f"{number}.nii.gz", np.full(SHAPE, number, np.int16), RAS)
    for number in (0, 1, 0, 2, 3, 0):
        assert (read(tmp_path / f"{number}.nii.gz", 2, 1) == number).all()
    write_volume(tmp_path / "0.nii.gz", np.full((12, 10, 9), 9, np.int16), RAS)
    assert (read(tmp_path / "0.nii.gz", 2, 1) == 9).all(), "a file that changed is read again"


def test_pictures_are_made_once_and_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    made = list[str]()

    def make(name: str) -> bytes:
        made.append(name)
        return bytes(1000)

    cache = PictureCache(tmp_path, limit=50_000)
    names = [cache.name(("image", number)) for number in range(202)]
    for name in (*names, names[-1]):
        assert cache.get(name, lambda name=name: make(name)) == bytes(1000)
    assert made == names
    assert 49 <= len(list(tmp_path.glob("*/*.png"))) <= 51
