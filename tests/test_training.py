"""Losses and metrics that see annotated voxels only, augmentation, and the training loop."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

import models
from datastore.volume_io import read_volume
from infers.engine import Segmenter
from loop.errors import BadInput
from models import ModelSpec
from models.plans import Plans
from models.preprocess import IGNORED
from trainers.augment import Changes, augmented
from trainers.data import Case
from trainers.engine import Trained, train
from trainers.losses import partial_dice_ce
from trainers.metrics import dice, dice_counts, dice_counts_of_each, mean_dice
from trainers.settings import Settings

CPU = torch.device("cpu")
PLANS = Plans.read(Path(__file__).parent / "plans_2d.json")
pytestmark = pytest.mark.usefixtures("one_thread")


def random_case(shape: tuple[int, ...], n_classes: int, ignored: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, C, *S) and a target (2, *S) of which a share is IGNORED."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, n_classes, *shape, generator=generator)
    target = torch.randint(n_classes, (2, *shape), generator=generator)
    return logits, torch.where(torch.rand(target.shape, generator=generator) < ignored, IGNORED, target).to(torch.uint8)


# --- loss


def slow_loss(logits: Tensor, target: Tensor) -> float:
    n_classes = logits.shape[1]
    cross_entropy, count = 0.0, 0
    overlap, predicted, true = (np.zeros(n_classes) for _ in range(3))
    for index in np.ndindex(*target.shape):
        k = int(target[index])
        if k == IGNORED:
            continue
        z = logits[(index[0], slice(None), *index[1:])].double().numpy()
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        cross_entropy, count = cross_entropy - np.log(p[k]), count + 1
        predicted += p
        true[k] += 1
        overlap[k] += p[k]
    scores = [2 * overlap[k] / (predicted[k] + true[k]) for k in range(1, n_classes) if true[k]]
    return cross_entropy / max(count, 1) + (1 - float(np.mean(scores)) if scores else 0)


@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize(("shape", "n_classes"), [((4, 5), 3), ((3, 4, 2), 2), ((2, 2), 6)])
def test_the_loss_equals_a_plain_loop(shape: tuple[int, ...], n_classes: int, ignored: float) -> None:
    logits, target = random_case(shape, n_classes, ignored)
    assert partial_dice_ce(logits, target).item() == pytest.approx(slow_loss(logits, target), rel=1e-5)


def test_a_class_that_nobody_annotated_leaves_the_dice_term() -> None:
    logits, target = random_case((6, 6), 4, 0.3)
    target[target == 2] = 1
    assert partial_dice_ce(logits, target).item() == pytest.approx(slow_loss(logits, target), rel=1e-5)
    target[target != IGNORED] = 0
    assert partial_dice_ce(logits, target).item() == pytest.approx(slow_loss(logits, target), rel=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
def test_voxels_that_nobody_annotated_change_nothing(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape, 3, 0.4)
    hidden = (target == IGNORED)[:, None]
    logits.requires_grad_()
    loss = partial_dice_ce(logits, target)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[hidden.expand_as(logits)].any()
    assert logits.grad[~hidden.expand_as(logits)].all()
    moved = torch.where(hidden, 100 * torch.randn_like(logits), logits)
    assert partial_dice_ce(moved, target).item() == loss.item()


def test_nothing_annotated_is_a_loss_of_zero() -> None:
    logits, target = random_case((4, 4), 3, 1.1)
    logits.requires_grad_()
    loss = partial_dice_ce(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_perfect_prediction_costs_nothing_and_confident_errors_stay_finite() -> None:
    _, target = random_case((6, 6), 3, 0.2)
    truth = torch.where(target == IGNORED, 0, target).long()
    onehot = torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float()
    assert partial_dice_ce(1000 * onehot, target).item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(partial_dice_ce(-1000 * onehot, target))


# --- metrics


def one_hot(mask: Tensor, n_classes: int) -> Tensor:
    return torch.nn.functional.one_hot(mask.long(), n_classes).movedim(-1, 0)[None].float()


@pytest.mark.parametrize("shape", [(8, 8), (5, 6, 7)])
def test_dice_equals_monai_on_full_masks(shape: tuple[int, ...]) -> None:
    from monai.metrics import compute_dice

    generator = torch.Generator().manual_seed(1)
    prediction, target = (torch.randint(4, shape, generator=generator).to(torch.uint8) for _ in range(2))
    expected = compute_dice(one_hot(prediction, 4), one_hot(target, 4), include_background=False)[0]
    np.testing.assert_allclose(dice(dice_counts(prediction, target, 4)), expected, rtol=1e-6)


def test_dice_counts_only_what_is_annotated() -> None:
    prediction = torch.tensor([[0, 1, 1, 1], [2, 2, 1, 0]], dtype=torch.uint8)
    target = torch.tensor([[0, 1, 0, IGNORED], [IGNORED, 0, 1, 1]], dtype=torch.uint8)
    counts = dice_counts(prediction, target, 4)
    assert counts.tolist() == [[2, 3, 3], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(dice(counts), [2 / 3, 0, np.nan])


def test_the_counts_of_each_item_are_those_of_the_item_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    # 4 and 5 are no classes of ours.
    prediction, target = (torch.randint(6, (5, 7, 9), generator=generator).to(torch.uint8) for _ in range(2))
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORED
    counts = dice_counts_of_each(prediction, target, 4)
    for k in range(1, 4):
        ours, theirs = (values == k for values in (prediction, target))
        known = target != IGNORED
        for place, mask in enumerate((ours & theirs, ours & known, theirs)):
            assert counts[:, k - 1, place].tolist() == mask.sum((1, 2)).tolist()
    np.testing.assert_array_equal(counts, [dice_counts(p, t, 4) for p, t in zip(prediction, target, strict=True)])
    np.testing.assert_array_equal(dice(counts)[3], dice(counts[3]))


@pytest.mark.parametrize(
    ("per_volume", "expected"),
    [
        ([[0.5, 0.25], [1.0, 0.75]], (0.625, [0.75, 0.5])),
        ([[0.5, np.nan], [1.0, np.nan]], (0.75, [0.75, None])),
        ([[0.5, np.nan], [np.nan, 1.0]], (0.75, [0.5, 1.0])),
        ([[np.nan, np.nan]], (None, [None, None])),
    ],
)
def test_mean_dice_skips_what_is_not_there(
    per_volume: list[list[float]], expected: tuple[float | None, list[float | None]]
) -> None:
    assert mean_dice(np.array(per_volume)) == expected


# --- augmentation


def changes(data: Tensor, seed: int) -> Changes:
    return Changes.drawn([torch.Generator().manual_seed(seed + row) for row in range(len(data))], data.shape[2:])


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 10)])
def test_augmentation_is_seeded_and_keeps_the_labels(shape: tuple[int, ...]) -> None:
    target = torch.randint(3, (6, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target[:, :2] = IGNORED
    data = target[:, None].float()
    state = torch.get_rng_state()
    results = [augmented(data, target, changes(data, seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for moved, labels in results:
        assert moved.shape == data.shape
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) == {0, 1, 2, IGNORED}
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 10)])
def test_augmentation_moves_image_and_label_together_and_ignores_what_comes_from_outside(
    shape: tuple[int, ...],
) -> None:
    target = torch.zeros(8, *shape, dtype=torch.uint8)
    target[:, shape[0] // 4 : shape[0] // 2, shape[1] // 3 :] = 1
    moved, labels = augmented(target[:, None].float() * 10, target, changes(target[:, None], 3))
    inside = labels != IGNORED
    assert 0 < (~inside).float().mean() < 0.3
    assert ((moved[:, 0] > 5) == (labels == 1))[inside].float().mean() > 0.97
    assert not torch.equal(labels[inside], target[inside])


# --- training


@dataclass
class Study:
    """Synthetic patients on disk: a bright box (class 1) and a dark one (class 2) on noise, all slices annotated."""

    folder: Path
    cases: list[Case] = field(default_factory=list)

    def add(self, name: str, *, split: str = "training", shape: tuple[int, ...] = (16, 24, 6), **changes: Any) -> Case:
        rng = np.random.default_rng(len(self.cases))
        mask = np.zeros(shape, np.uint8)
        mask[2:8, 4:12], mask[9:15, 12:20] = 1, 2
        image = rng.normal(0, 0.3, shape) + np.choose(mask, [0, 2, -2])
        paths = [self.folder / f"{name}_{kind}.nii.gz" for kind in ("image", "mask")]
        for path, array in zip(paths, (image.astype(np.float32), mask), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        self.cases.append(replace(Case(name, paths[0], paths[1], 2, range(shape[2]), split), **changes))
        return self.cases[-1]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = Study(tmp_path)
    study.add("one")
    study.add("two", slices=[1, 3])
    study.add("three", slices=[0, 5], split="validation")
    return study


SETTINGS = Settings(epochs=2, steps_per_epoch=2, batch_size=2, learning_rate=3e-3, seed=1)


def spec_of(name: str, **changes: Any) -> ModelSpec:
    return replace(models.get(name, labels=("box", "hole"), plans=PLANS), **changes)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rewritten(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    array = change(np.asanyarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine), path)


@pytest.mark.parametrize("name", models.names())
def test_training_learns_and_says_how_well(study: Study, name: str) -> None:
    spec, reports = spec_of(name), list[dict[str, object]]()
    settings = replace(SETTINGS, epochs=4, steps_per_epoch=8)
    trained = train(spec, study.cases, settings, device=CPU, report=lambda **progress: reports.append(progress))
    losses = [entry["loss"] for entry in trained.curve]
    assert [entry["epoch"] for entry in trained.curve] == [1, 2, 3, 4]
    assert losses[-1] < 0.7 * losses[0]
    items = (8, 2) if spec.spatial_dims == 2 else (2, 1)
    assert (trained.metrics["training_items"], trained.metrics["validation_items"]) == items
    assert [report["fraction"] for report in reports] == [step / 32 for step in range(1, 33)]
    assert reports[-1]["epoch"] == reports[-1]["epochs"] == 4
    assert reports[-1]["dice"] == trained.metrics["dice"]
    assert trained.metrics["loss"] == losses[-1]
    # What a validation metric claims is what a prediction of the validation patient's annotated slices shows.
    case = study.cases[2]
    predicted = Segmenter(spec, trained.weights, device=CPU).predict(read_volume(case.image), case.axis)[
        ..., case.slices
    ]
    truth = read_volume(case.mask).array[..., case.slices]
    scores = [
        2 * ((predicted == k) & (truth == k)).sum() / ((predicted == k).sum() + (truth == k).sum()) for k in (1, 2)
    ]
    assert list(trained.metrics["dice_per_class"]) == ["box", "hole"]
    assert list(trained.metrics["dice_per_class"].values()) == pytest.approx(scores, abs=1e-6)
    assert trained.metrics["dice"] == pytest.approx(np.mean(scores), abs=1e-6)


@pytest.mark.parametrize("name", models.names())
def test_the_seed_decides_and_the_global_generator_is_left_alone(study: Study, name: str) -> None:
    results = list[Trained]()
    for seed in (1, 1, 2):
        torch.rand(seed + len(results))
        state = torch.get_rng_state()
        results.append(train(spec_of(name), study.cases, replace(SETTINGS, seed=seed), device=CPU))
        assert torch.equal(torch.get_rng_state(), state)
    first, again, other = results
    assert same(first.weights, again.weights)
    assert first.curve == again.curve
    assert not same(first.weights, other.weights)


@pytest.mark.parametrize("name", models.names())
def test_only_annotated_slices_of_training_patients_are_seen(study: Study, name: str) -> None:
    spec = spec_of(name)
    before = train(spec, study.cases, SETTINGS, device=CPU)

    def unannotated(mask: np.ndarray) -> np.ndarray:
        mask[..., [0, 2, 4, 5]] = 2 - mask[..., [0, 2, 4, 5]]
        return mask

    rewritten(study.cases[1].mask, unannotated)
    rewritten(study.cases[2].mask, np.zeros_like)
    rewritten(study.cases[2].image, lambda image: -image)
    after = train(spec, study.cases, SETTINGS, device=CPU)
    assert same(before.weights, after.weights)
    rewritten(study.cases[1].mask, lambda mask: 2 - mask)
    assert not same(before.weights, train(spec, study.cases, SETTINGS, device=CPU).weights)


def broken_study(study: Study) -> dict[str, str]:
    """Adds cases that cannot be used; {image id: what must be said of it}."""
    study.add("corrupt").mask.write_text("this is no image")
    study.add("missing").image.unlink()
    study.add("late", slices=[2, 6])
    rewritten(study.add("strange").mask, lambda mask: 2 * mask)
    rewritten(study.add("holed").mask, lambda mask: np.where(mask == 1, np.nan, mask).astype(np.float32))
    rewritten(study.add("cropped").mask, lambda mask: mask[1:])
    rewritten(study.add("dark").image, lambda image: np.full_like(image, np.nan))
    study.add("unseen", split="validation").image.unlink()
    return {
        "corrupt": "could not be read",
        "missing": "could not be read",
        "late": "slice 6 is annotated, but the image has 6 slices",
        "strange": "values other than 0 to 2",
        "holed": "values other than 0 to 2",
        "cropped": r"\(15, 24, 6\) voxels, the image \(16, 24, 6\)",
        "dark": "NaN",
        "unseen": "could not be read",
    }


def test_cases_that_cannot_be_used_are_named_and_left_out(study: Study) -> None:
    clean = train(spec_of("unet2d"), study.cases, SETTINGS, device=CPU)
    expected = broken_study(study)
    warnings = list[str]()
    trained = train(spec_of("unet2d"), study.cases, SETTINGS, device=CPU, warn=warnings.append)
    assert len(warnings) == len(expected)
    for warning, (image_id, reason) in zip(warnings, expected.items(), strict=True):
        assert re.match(f"{image_id} was left out: .*{reason}", warning)
    assert same(trained.weights, clean.weights)


@pytest.mark.parametrize("usable", [False, True], ids=["broken", "validation only"])
def test_without_a_training_case_there_is_no_training(tmp_path: Path, usable: bool) -> None:
    study = Study(tmp_path)
    if usable:
        study.add("one", split="validation")
    else:
        study.add("one").mask.write_bytes(b"")
    with pytest.raises(BadInput, match="no usable annotated slice of a training patient"):
        train(spec_of("unet2d"), study.cases, SETTINGS, device=CPU)


def test_without_validation_labels_there_is_no_dice(study: Study) -> None:
    trained = train(spec_of("unet2d"), study.cases[:2], SETTINGS, device=CPU)
    assert trained.metrics["dice"] is None
    assert trained.metrics["dice_per_class"] == {"box": None, "hole": None}


def test_fine_tuning_starts_from_the_given_weights(study: Study) -> None:
    spec, gently = spec_of("unet3d"), replace(SETTINGS, learning_rate=1e-9)
    start = train(spec, study.cases, SETTINGS, device=CPU).weights
    kept = {key: value.clone() for key, value in start.items()}
    # Running statistics move however small the steps are.
    learned = [key for key, _ in spec.network(0).named_parameters()]

    def distance(trained: Trained) -> float:
        return max(float((trained.weights[key] - start[key]).abs().max()) for key in learned)

    assert distance(train(spec, study.cases, gently, device=CPU, start=start)) < 1e-6
    assert distance(train(spec, study.cases, gently, device=CPU)) > 1e-3
    assert same(start, kept)
    with pytest.raises(BadInput, match="do not fit the model 'unet3d'"):
        train(models.get("unet3d", labels=("a", "b", "c")), study.cases, SETTINGS, device=CPU, start=start)


@pytest.mark.parametrize("total", [(1, 1), (1, 5), (5, 1), (1, 10)])
def test_any_number_of_steps_can_be_trained(study: Study, total: tuple[int, int]) -> None:
    settings = replace(SETTINGS, epochs=total[0], steps_per_epoch=total[1])
    assert len(train(spec_of("unet2d"), study.cases, settings, device=CPU).curve) == total[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet2d", {"patch": (9, 16)}),
        ("unet2d", {"patch": (40, 64)}),
        ("unet2d", {"spacing": (0.7, 1.3)}),
        ("unet3d", {"patch": (12, 12, 8)}),
        ("unet3d", {"patch": (16, 32, 16), "spacing": (1.5, 1.5, 0.8)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("axis", [0, 2])
def test_patches_smaller_and_larger_than_the_cases(study: Study, name: str, changes: dict[str, Any], axis: int) -> None:
    study.add("wide", shape=(17, 21, 11), slices=[3, 10], axis=axis)
    cases = [replace(case, axis=axis) for case in study.cases]
    trained = train(spec_of(name, **changes), cases, SETTINGS, device=CPU)
    assert np.isfinite(trained.metrics["loss"])
    assert 0 <= trained.metrics["dice"] <= 1
