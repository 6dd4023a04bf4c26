"""Tests of the phantom patients: what they hold, how they are written, and that they are the same every time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from bench.phantom import LABELS, Phantom, make_phantom, write_phantoms

ORGAN, VESSEL, WALL, LESION = range(1, len(LABELS) + 1)
PATIENTS = 30


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one volume of each of thirty patients."""
    folder = tmp_path_factory.mktemp("phantoms") / "study"
    write_phantoms(folder, patients=PATIENTS, seed=3)
    return folder


@pytest.fixture(scope="module")
def phantoms(study: Path) -> list[Phantom]:
    """The volumes of the study, read back from disk."""
    return [read(study, path.name) for path in sorted((study / "images").glob("*.nii.gz"))]


def read(study: Path, name: str) -> Phantom:
    """Read an image and its label; both have to share shape and affine."""
    image, label = (nib.load(study / kind / name) for kind in ("images", "labels"))
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)
    return Phantom(np.asanyarray(image.dataobj), np.asanyarray(label.dataobj), image.affine)


def contents(folder: Path) -> dict[str, bytes]:
    """Each file under a folder, by its path inside it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labelled_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which slices of an (X, Y, Z) mask hold any voxel, (Z,)."""
    return np.asarray(mask.any(axis=(0, 1)))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_phantoms(tmp_path / name, patients=2, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_same_rng_same_phantom() -> None:
    one, two = (make_phantom(np.random.default_rng(1), setting=1) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.label, two.label)


def test_files_and_config(study: Path) -> None:
    names = {f"patient{number:03d}.nii.gz" for number in range(1, PATIENTS + 1)}
    assert {path.name for path in study.iterdir()} == {"images", "labels"}
    assert {path.name for path in (study / "labels").iterdir()} == names
    assert {path.name for path in (study / "images").iterdir()} == names | {"nextslice.json"}
    config = json.loads((study / "images" / "nextslice.json").read_text(encoding="utf-8"))
    assert config["labels"] == list(LABELS)


def test_header_is_ras_in_mm(study: Path) -> None:
    for path in sorted(study.rglob("*.nii.gz")):
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.header["qform_code"] > 0
        assert image.header["sform_code"] > 0
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        assert np.argmax(image.header.get_zooms()) == 2


def test_several_volumes_of_a_patient(tmp_path: Path) -> None:
    ids = write_phantoms(tmp_path, patients=3, seed=0, volumes_per_patient=2)
    assert ids == [f"patient{patient:03d}_scan{scan}" for patient in (1, 2, 3) for scan in (1, 2)]
    pattern = json.loads((tmp_path / "images" / "nextslice.json").read_text(encoding="utf-8"))["patient_pattern"]
    assert [re.findall(pattern, image_id) for image_id in ids] == [[image_id[:10]] for image_id in ids]
    for patient in ("patient001", "patient002", "patient003"):
        first, second = (read(tmp_path, f"{patient}_scan{scan}.nii.gz") for scan in (1, 2))
        np.testing.assert_array_equal(first.affine, second.affine)
        assert (LESION in first.label) == (LESION in second.label)
        organ = first.label == ORGAN, second.label == ORGAN
        assert 2 * (organ[0] & organ[1]).sum() > 0.8 * (organ[0].sum() + organ[1].sum())
        assert not np.array_equal(first.image, second.image)


def test_values_and_types(phantoms: list[Phantom]) -> None:
    assert len(phantoms) == PATIENTS
    for phantom in phantoms:
        assert phantom.label.dtype == np.uint8
        assert phantom.label.max() <= len(LABELS)
        assert phantom.image.dtype == np.int16
        assert phantom.image.min() >= 0
        assert np.ptp(phantom.image) > 300


def test_every_label_but_the_lesion_is_always_there(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        assert {ORGAN, VESSEL, WALL} <= set(np.unique(phantom.label).tolist())


def test_lesion_is_rare_and_small(phantoms: list[Phantom]) -> None:
    lesions = [phantom.label == LESION for phantom in phantoms if LESION in phantom.label]
    assert 0.2 * PATIENTS <= len(lesions) <= 0.5 * PATIENTS
    for lesion in lesions:
        assert 2 <= labelled_slices(lesion).sum() <= 4
        assert lesion.mean() < 0.005


def test_both_settings_occur_irregularly(phantoms: list[Phantom]) -> None:
    spacings = [tuple(np.diag(phantom.affine)[:3].round(3).tolist()) for phantom in phantoms]
    assert set(spacings) == {(1.5, 1.5, 6.0), (1.2, 1.2, 5.0)}
    assert {phantom.image.shape for phantom in phantoms} == {(64, 64, 20), (72, 60, 24)}
    assert len(set(spacings[::2])) == 2


def test_setting_changes_the_contrast(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        brighter = np.median(phantom.image[phantom.label == VESSEL]) > np.median(phantom.image[phantom.label == ORGAN])
        assert brighter == (phantom.image.shape == (64, 64, 20))


def test_end_slices_are_empty(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        used = labelled_slices(phantom.label > 0)
        assert not used[0]
        assert not used[-1]
        assert used.mean() > 0.5


def test_vessel_is_one_tube_that_winds(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        vessel = phantom.label == VESSEL
        used = np.flatnonzero(labelled_slices(vessel))
        assert used.size == np.ptp(used) + 1 >= 10
        middles = np.array([ndimage.center_of_mass(vessel[:, :, z]) for z in used])
        assert np.ptp(middles, axis=0).max() > 3.0


def test_wall_is_thin_and_closed(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        wall = phantom.label == WALL
        assert ndimage.binary_erosion(wall).sum() < 0.08 * wall.sum()
        assert ndimage.binary_fill_holes(wall).sum() > 1.3 * wall.sum()


@pytest.mark.parametrize("setting", [0, 1])
@pytest.mark.parametrize("shape", [(32, 32, 8), (96, 80, 12)])
def test_other_shapes(setting: int, shape: tuple[int, int, int]) -> None:
    for seed in range(6):
        phantom = make_phantom(np.random.default_rng(seed), setting=setting, shape=shape)
        assert phantom.image.shape == phantom.label.shape == shape
        assert {ORGAN, VESSEL, WALL} <= set(np.unique(phantom.label).tolist())
        assert not labelled_slices(phantom.label > 0)[[0, -1]].any()


def test_wrong_arguments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="setting must be"):
        make_phantom(rng, setting=2)
    with pytest.raises(ValueError, match="shape must be at least"):
        make_phantom(rng, setting=0, shape=(64, 64, 4))
    with pytest.raises(ValueError, match="at least one patient"):
        write_phantoms(tmp_path / "none", patients=0)
    assert not (tmp_path / "none").exists()


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("mine", encoding="utf-8")
    for taken in (tmp_path, note):
        with pytest.raises(FileExistsError, match=re.escape(str(taken)) + ".*delete it or name a new folder"):
            write_phantoms(taken, patients=1)
    assert contents(tmp_path) == {"note.txt": b"mine"}


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bench.phantom._write_nifti", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path, patients=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("progress", [False, True])
def test_progress_bar_only_when_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    write_phantoms(tmp_path, patients=1, progress=progress)
    assert ("1/1" in capfd.readouterr().err) == progress
