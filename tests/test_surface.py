"""Surface distances in mm, bootstrap errors, and what a model's card says of its validation volumes."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

import models
from trainers.data import Case, load
from trainers.engine import train
from trainers.metrics import mean_dice, mean_with_error, measured
from trainers.settings import Settings
from trainers.surface import surface_distances

Mask = npt.NDArray[np.uint8]
pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(shape: tuple[int, ...], seed: int) -> Mask:
    """Two classes in random boxes, one voxel away from the border, where conventions differ."""
    rng, mask = np.random.default_rng(seed), np.zeros(shape, np.uint8)
    for label in (1, 2, 1):
        low = [int(rng.integers(1, n - 4)) for n in shape]
        high = [int(rng.integers(a + 2, n - 1)) for a, n in zip(low, shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = label
    return mask


def slow_distances(a: Mask, b: Mask, spacing: tuple[float, ...]) -> tuple[float, float]:
    def surface(mask: Mask) -> npt.NDArray[np.float64]:
        steps = [tuple(s if i == axis else 0 for i in range(mask.ndim)) for axis in range(mask.ndim) for s in (-1, 1)]
        padded = np.pad(mask, 1)
        found = [
            at
            for at in product(*map(range, mask.shape))
            if mask[at] and not all(padded[tuple(x + d + 1 for x, d in zip(at, step, strict=True))] for step in steps)
        ]
        return np.array(found, float) * np.array(spacing)

    one, two = surface(a), surface(b)
    far = np.linalg.norm(one[:, None] - two[None], axis=-1)
    ways = far.min(1), far.min(0)
    return max(np.percentile(way, 95) for way in ways), float(np.concatenate(ways).mean())


CASES = [((14, 11), (0.5, 2.0), 0), ((9, 8, 10), (0.7, 1.3, 5.0), 4), ((12, 9, 8), (1.0, 1.0, 1.0), 2)]


@pytest.mark.parametrize(("shape", "spacing", "seed"), CASES)
def test_distances_equal_a_comparison_of_all_surface_voxels(
    shape: tuple[int, ...], spacing: tuple[float, ...], seed: int
) -> None:
    prediction, truth = blobs(shape, seed), blobs(shape, seed + 10)
    found = surface_distances(prediction, truth, 3, spacing)
    for k in (1, 2):
        expected = slow_distances(prediction == k, truth == k, spacing)
        assert found[k - 1].tolist() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI by MONAI
@pytest.mark.parametrize(("shape", "spacing", "seed"), CASES)
def test_distances_equal_monai(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int) -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    prediction, truth = blobs(shape, seed), blobs(shape, seed + 10)
    pair = [
        torch.nn.functional.one_hot(torch.from_numpy(m).long(), 3).movedim(-1, 0)[None] for m in (prediction, truth)
    ]
    hausdorff = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)[0]
    mean = compute_average_surface_distance(*pair, symmetric=True, spacing=spacing)[0]
    found = surface_distances(prediction, truth, 3, spacing)
    np.testing.assert_allclose(found, np.stack([hausdorff, mean], 1), rtol=1e-5)


def test_known_shapes() -> None:
    truth, prediction = np.zeros((20, 20, 10), np.uint8), np.zeros((20, 20, 10), np.uint8)
    truth[5:10, 5:10, 3:6] = 1
    prediction[5:10, 5:10, 5:8] = 1  # two slices further, each 3 mm apart
    hausdorff, mean = surface_distances(prediction, truth, 2, (1.0, 1.0, 3.0))[0]
    assert hausdorff == 6
    assert 0 < mean < 6
    assert surface_distances(truth, truth, 2, (1.0, 1.0, 3.0)).tolist() == [[0, 0]]
    # Surfaces at the border of the image are surfaces too.
    full = np.ones((4, 4), np.uint8)
    assert surface_distances(full, full, 2, (1.0, 1.0)).tolist() == [[0, 0]]


def test_a_class_that_is_missing_is_as_far_as_the_image_is_long_and_one_that_is_nowhere_does_not_count() -> None:
    mask = np.zeros((3, 4), np.uint8)
    mask[1, 1] = 1
    found = surface_distances(mask, np.zeros_like(mask), 3, (2.0, 2.0))
    np.testing.assert_array_equal(found, [[10, 10], [np.nan, np.nan]])
    np.testing.assert_array_equal(surface_distances(np.zeros_like(mask), mask, 3, (2.0, 2.0)), found)


# --- standard errors


def test_the_bootstrap_error_is_near_the_formula_of_a_mean_and_seeded() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    mean, error = mean_with_error(values, np.random.default_rng(1))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=0.1)
    assert mean_with_error(values, np.random.default_rng(1)) == (mean, error)
    with_gaps = np.concatenate([values, [np.nan, np.nan]])
    assert mean_with_error(with_gaps, np.random.default_rng(1)) == (mean, error)


def test_the_mean_over_classes_is_that_of_mean_dice() -> None:
    rows = np.array([[0.5, np.nan], [0.75, 1.0], [np.nan, np.nan], [1.0, 0.25]])
    mean, error = mean_with_error(rows, np.random.default_rng(0))
    assert mean == pytest.approx(mean_dice(rows)[0])
    assert error is not None
    assert 0 < error < 0.5
    assert mean_with_error(rows[2:3], np.random.default_rng(0)) == (None, None)
    assert mean_with_error(rows[1:2], np.random.default_rng(0)) == (0.875, None)
    table = measured({"dice": rows}, ["a", "b"], np.random.default_rng(0))
    assert table["a"]["dice"] == 0.75
    assert table["b"]["dice"] == 0.625
    assert table["a"]["dice_se"] > 0


# --- of a training


def case(folder: Path, name: str, split: str, slices: list[int], seed: int) -> Case:
    mask = blobs((16, 12, 9), seed)
    image = np.choose(mask, [0, 2, -2]) + np.random.default_rng(seed).normal(0, 0.3, mask.shape)
    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("image", "mask")]
    for path, array in zip(paths, (image.astype(np.float32), mask), strict=True):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 5.0, 1.0])), path)
    return Case(name, *paths, 2, slices, split)


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_metrics_of_a_training_hold_distances_in_mm(tmp_path: Path, name: str, whole: bool) -> None:
    cases = [case(tmp_path, "one", "training", [4], 0)]
    cases += [case(tmp_path, f"v{n}", "validation", list(range(9)) if whole else [2, 5], n) for n in (3, 4)]
    cases += [case(tmp_path, "part", "validation", [1], 5)]
    spec = replace(models.get(name, labels=("a", "b")), spacing=(1.0, 2.0) if name == "unet2d" else (1.0, 2.0, 5.0))
    settings = Settings(epochs=1, steps_per_epoch=1, batch_size=2, learning_rate=1e-3, seed=0)
    trained = train(spec, cases, settings, device=torch.device("cpu"))
    found = trained.metrics["validation"]
    assert (found["volumes"], found["distances_in"], found["distance_volumes"]) == ((3, 3, 2) if whole else (3, 2, 3))
    longest = np.linalg.norm([16, 24, 45] if whole else [16, 24])
    for name_of, per_class in found["classes"].items():
        assert per_class["dice"] == pytest.approx(trained.metrics["dice_per_class"][name_of])
        assert 0 < per_class["msd_mm"] <= per_class["hd95_mm"] <= longest + 1e-6
        assert per_class["hd95_mm_se"] >= 0
    data = load(spec, cases)
    expected = {"unet2d": ((5.0, 1.0, 2.0), 0), "unet3d": ((1.0, 2.0, 5.0), 2)}[name]
    assert [(loaded.spacing, loaded.axis) for loaded in data.validation] == [expected] * 3
    assert [loaded.whole for loaded in data.validation] == [whole, whole, False]
