"""The engine's probabilities are those of a plain one-image-at-a-time computation, on the image's own grid."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from datastore.volume_io import Volume
from infers.engine import PoolViews, Segmenter, pick_device
from infers.source import Source
from loop.errors import BadInput
from loop.pool import WHOLE, ItemTable, Pool
from loop.signals import sweep
from loop.views import Probs
from models import ModelSpec
from models.preprocess import normalised
from strategies.max_entropy import MaxEntropy

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
PROBS = frozenset({Probs()})
SHAPES = ((9, 17, 6), (12, 8, 11), (5, 10, 7))


def spec_of(name: str, **changes: Any) -> ModelSpec:
    return replace(models.get(name, labels=("a", "b")), **changes)


def segmenter_of(name: str, batch: int = 4, **changes: Any) -> Segmenter:
    """With seeded weights and running statistics that are not those of the start."""
    spec = spec_of(name, **changes)
    weights = spec.network(7).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, value in weights.items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return Segmenter(spec, weights, device=CPU, batch=batch)


@dataclass
class Study:
    """Images on disk and the pool of their items."""

    sources: list[Source]
    pool: Pool
    spacing: tuple[float, ...] = (1.0, 2.0, 1.5)

    def array(self, volume: int) -> np.ndarray:
        return np.asanyarray(nib.load(self.sources[volume].path).dataobj)

    def views(self, segmenter: Segmenter) -> "Views":
        return Views(segmenter, self)


class Views(PoolViews):
    """Keeps what it is told."""

    def __init__(self, segmenter: Segmenter, study: Study) -> None:
        self.unreadable_images: list[tuple[str, str]] = []
        self.done_rows: list[int] = []
        super().__init__(
            segmenter,
            study.pool,
            study.sources,
            unreadable=lambda image_id, reason: self.unreadable_images.append((image_id, reason)),
            done=self.done_rows.append,
        )

    def collect(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """{row: probabilities (C, *S)}."""
        found: dict[int, Tensor] = {}
        for batch in self.batches(np.array(rows, np.int64)):
            probs = self.compute(batch, PROBS)[Probs()]
            assert len(probs) == len(batch.rows)
            assert not set(batch.rows.tolist()) & set(found)
            found.update(zip(batch.rows.tolist(), probs, strict=True))
        return found


def make_study(folder: Path, axis: int, unit: str, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Study:
    rng, sources = np.random.default_rng(axis), []
    for number, shape in enumerate(shapes):
        path = folder / f"image_{number}.nii.gz"
        array = np.cumsum(rng.normal(0, 10 * (number + 1), shape), axis=0).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([*Study.spacing, 1])), path)
        sources.append(Source(f"image_{number}", path, axis))
    lengths = [1 if unit == "volume" else shape[axis] for shape in shapes]
    volume = np.repeat(np.arange(len(shapes)), lengths)
    position = np.full(len(volume), WHOLE) if unit == "volume" else np.concatenate([np.arange(n) for n in lengths])
    none = np.zeros(len(volume), bool)
    items = ItemTable([source.image_id for source in sources], volume, position)
    return Study(sources, Pool(items, none, none, volume, volume, position))


def plain_normalised(array: np.ndarray) -> np.ndarray:
    low, high = np.percentile(array, (0.5, 99.5))
    clipped = np.clip(array.astype(np.float64), low, high)
    return (clipped - clipped.mean()) / clipped.std()


@pytest.mark.parametrize("scale", [1, 100, 1e5], ids=["narrow", "wide", "too wide to count"])
@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32"])
def test_normalised_is_numpys_percentiles_in_every_type(kind: str, scale: float) -> None:
    limits = np.iinfo(kind) if kind != "float32" else np.finfo(kind)
    scale = min(scale, float(limits.max) / 10)
    drawn = np.random.default_rng(0).normal(0 if kind[0] != "u" else 5 * scale, scale, (13, 11, 7))
    array = np.clip(np.rint(drawn), max(float(limits.min), -1e9), min(float(limits.max), 1e9)).astype(kind)
    np.testing.assert_allclose(normalised(array).numpy(), plain_normalised(array), atol=2e-5)


def plain_probs(network: nn.Module, item: np.ndarray) -> Tensor:
    """One slice or volume, padded to multiples of 8, alone through the network, cut to its size: (C, *S)."""
    padded = np.pad(item, [(0, -size % 8) for size in item.shape])
    with torch.inference_mode():
        probs = network(torch.from_numpy(padded).float()[None, None]).softmax(1)[0]
    return probs[(slice(None), *(slice(size) for size in item.shape))]


def plain(study: Study, segmenter: Segmenter, row: int) -> Tensor:
    """What PoolViews must say of a row."""
    volume, position = int(study.pool.volume[row]), int(study.pool.position[row])
    axis, array = study.sources[volume].axis, plain_normalised(study.array(volume))
    if segmenter.spec.spatial_dims == 3:
        probs = plain_probs(segmenter.network, array)
        return probs if position == WHOLE else probs.select(1 + axis, position)
    slices = range(array.shape[axis]) if position == WHOLE else [position]
    probs = torch.stack([plain_probs(segmenter.network, array.take(index, axis)) for index in slices], dim=-1)
    return probs if position == WHOLE else probs[..., 0]


# --- probabilities


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("unit", ["slice", "volume"])
@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_probabilities_equal_a_plain_computation(tmp_path: Path, name: str, unit: str, axis: int) -> None:
    study, segmenter = make_study(tmp_path, axis, unit), segmenter_of(name)
    views = study.views(segmenter)
    found = views.collect(range(len(study.pool)))
    assert sorted(found) == list(range(len(study.pool)))
    for row, probs in found.items():
        torch.testing.assert_close(probs, plain(study, segmenter, row), atol=1e-4, rtol=1e-3)
        assert probs.std() > 0.01
    assert sum(views.done_rows) == len(study.pool)
    assert views.unreadable_images == []


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_rows_may_be_any_subset_in_any_order(tmp_path: Path, name: str) -> None:
    study, segmenter = make_study(tmp_path, 1, "slice"), segmenter_of(name, batch=3)
    whole = study.views(segmenter).collect(range(len(study.pool)))
    for rows in ([33, 2, 19, 0, 4, 5, 3, 17, 30, 16], [24], [3, 4, 5, 6], [6, 5, 4, 3]):
        views = study.views(segmenter)
        found = views.collect(rows)
        assert sorted(found) == sorted(rows)
        for row in rows:
            torch.testing.assert_close(found[row], whole[row], atol=1e-5, rtol=1e-4)
        assert sum(views.done_rows) == len(rows)
    assert study.views(segmenter).collect([]) == {}


@pytest.mark.parametrize(("name", "spacing"), [("unet2d", (2.0, 1.0)), ("unet3d", (1.0, 1.0, 2.0))])
def test_with_spacing_probabilities_are_still_on_the_own_grid(
    tmp_path: Path, name: str, spacing: tuple[float, ...]
) -> None:
    study, segmenter = make_study(tmp_path, 2, "slice", SHAPES[:1]), segmenter_of(name, spacing=spacing)
    mode = "bilinear" if name == "unet2d" else "trilinear"
    array = torch.from_numpy(plain_normalised(study.array(0))).float()
    # Slices of spacing (1, 2): 9 x 17 voxels; the volume's third axis has 1.5 mm.
    size = (4, 34) if name == "unet2d" else (9, 34, 4)

    def resized(maps: Tensor, to: Sequence[int]) -> Tensor:
        return nn.functional.interpolate(maps, size=tuple(to), mode=mode, align_corners=False)

    items = array.movedim(2, 0) if name == "unet2d" else array[None]
    maps = [resized(item[None, None], size)[0, 0].numpy() for item in items]
    probs = [resized(plain_probs(segmenter.network, item)[None], items.shape[1:])[0] for item in maps]
    expected = probs if name == "unet2d" else list(probs[0].unbind(-1))
    for row, found in study.views(segmenter).collect(range(len(study.pool))).items():
        torch.testing.assert_close(found, expected[row], atol=2e-5, rtol=1e-4)


def test_a_sweep_of_the_engine_is_the_mean_of_the_plain_maps(tmp_path: Path) -> None:
    study, segmenter = make_study(tmp_path, 2, "slice"), segmenter_of("unet2d")
    (need,) = MaxEntropy().needs
    values = np.full(len(study.pool), np.nan)

    def keep(rows: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
        values[rows] = found[need.name]

    sweep(study.views(segmenter), [need], np.arange(len(study.pool)), keep)
    maps = [plain(study, segmenter, row) for row in range(len(study.pool))]
    np.testing.assert_allclose(values, [-(p * p.log()).sum(0).mean().item() for p in maps], rtol=1e-4)


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_unreadable_images_are_reported_and_left_out(tmp_path: Path, unit: str, name: str) -> None:
    study, segmenter = make_study(tmp_path, 2, unit, [*SHAPES, SHAPES[0]]), segmenter_of(name)
    expected = study.views(segmenter).collect(range(len(study.pool)))
    study.sources[0].path.write_text("no image")
    study.sources[2].path.unlink()
    rows = [row for row in expected if study.pool.volume[row] in (1, 3)]
    views = study.views(segmenter)
    found = views.collect(range(len(study.pool)))
    assert sorted(found) == rows
    assert all(torch.equal(found[row], expected[row]) for row in rows)
    assert [image_id for image_id, _ in views.unreadable_images] == ["image_0", "image_2"]
    assert all("could not be read" in reason for _, reason in views.unreadable_images)
    assert sum(views.done_rows) == len(study.pool)


@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_an_image_that_lost_slices_is_reported_and_left_out(tmp_path: Path, name: str) -> None:
    study = make_study(tmp_path, 2, "slice")
    nib.save(nib.Nifti1Image(study.array(1)[..., :8], np.eye(4)), study.sources[1].path)
    views = study.views(segmenter_of(name))
    found = views.collect(range(len(study.pool)))
    assert {int(study.pool.volume[row]) for row in found} == {0, 2}
    assert views.unreadable_images == [("image_1", "The file changed: it has no slice 10 any more.")]


def test_other_errors_of_the_reader_end_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> Volume:
        raise RuntimeError("a bug")

    study = make_study(tmp_path, 2, "slice")
    monkeypatch.setattr("infers.source.read_volume", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        study.views(segmenter_of("unet2d")).collect(range(len(study.pool)))


def test_an_abandoned_sweep_leaves_no_thread(tmp_path: Path) -> None:
    study = make_study(tmp_path, 2, "slice", SHAPES * 3)
    batches = study.views(segmenter_of("unet2d")).batches(np.arange(len(study.pool)))
    next(batches)
    (reader,) = [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
    batches.close()  # type: ignore[attr-defined]
    reader.join(10)
    assert not reader.is_alive()


def test_batches_of_slices_are_bounded_and_stay_within_an_image(tmp_path: Path) -> None:
    study = make_study(tmp_path, 2, "slice")
    batches = [batch.rows for batch in study.views(segmenter_of("unet2d")).batches(np.arange(len(study.pool)))]
    assert [len(rows) for rows in batches] == [4, 2, 4, 4, 3, 4, 3]
    assert all(len(set(study.pool.volume[rows])) == 1 for rows in batches)


# --- prediction


class Bright(nn.Module):
    """Class 1 where the input is above zero, class 2 where it is above one."""

    def forward(self, data: Tensor) -> Tensor:
        return torch.cat([-data, data, 2 * data - 1], dim=1)


def bright(name: str, **changes: Any) -> Segmenter:
    return Segmenter(spec_of(name, build=lambda channels: Bright(), **changes), None, device=CPU, batch=4)


def bright_mask(array: np.ndarray) -> np.ndarray:
    voxels = plain_normalised(array)
    return ((voxels > 0).astype(np.uint8) + (voxels > 1)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["unet2d", "unet3d"])
def test_a_predicted_mask_lies_on_the_image(name: str, axis: int, dtype: type) -> None:
    array = np.random.default_rng(0).normal(50, 20, (7, 13, 10)).astype(dtype)
    mask = bright(name).predict(Volume(array, np.eye(4)), axis)
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, bright_mask(array))


@pytest.mark.parametrize("patch", [(16, 16, 16), (10, 16, 9), (40, 16, 16)], ids=str)
def test_large_volumes_go_through_in_windows(patch: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(0, 1, (40, 21, 12)).astype(np.float32)
    mask = bright("unet3d", patch=patch).predict(Volume(array, np.eye(4)), 2)
    np.testing.assert_array_equal(mask, bright_mask(array))
    spec = spec_of("unet3d", patch=patch)
    network, generator = spec.network(7).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():  # statistics of what goes in, so that the untrained network's classes differ
        for _ in range(20):
            network(torch.randn(2, 1, 16, 16, 16, generator=generator))
    real = Segmenter(spec, network.state_dict(), device=CPU, batch=4).predict(Volume(array, np.eye(4)), 2)
    assert real.shape == array.shape
    assert len(np.unique(real)) > 1


def test_a_volume_larger_than_the_bound_is_cut_into_windows_of_it() -> None:
    seen: list[tuple[int, ...]] = []
    segmenter = bright("unet3d", largest_patch=16)
    segmenter.network.register_forward_hook(lambda layer, args, out: seen.append(tuple(out.shape[2:])))
    segmenter.predict(Volume(np.random.default_rng(0).random((33, 10, 10)), np.eye(4)), 2)
    assert set(seen) == {(16, 16, 16)}


def test_prediction_does_not_depend_on_the_batch() -> None:
    volume = Volume(np.random.default_rng(0).normal(0, 1, (10, 12, 9)), np.eye(4))
    masks = [segmenter_of("unet2d", batch=batch).predict(volume, 2) for batch in (1, 4, 64)]
    assert (masks[0] == masks[1]).mean() > 0.999
    assert (masks[0] == masks[2]).mean() > 0.999


def test_no_weights_are_the_seeded_start() -> None:
    spec = spec_of("unet2d")
    first, second = (Segmenter(spec, None, device=CPU, seed=seed).network.state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], value) for key, value in spec.network(3).state_dict().items())
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = spec_of("unet3d").network(0).state_dict()
    with pytest.raises(BadInput, match="do not fit the model 'unet2d'"):
        Segmenter(spec_of("unet2d"), weights, device=CPU)


# --- devices


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cpu") == CPU
    assert pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert pick_device("auto").type == expected


@pytest.mark.parametrize("wanted", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "mps", "meta", "cpu:1", "CPU", "cuda:0 "])
def test_a_device_must_have_a_known_name(wanted: str) -> None:
    with pytest.raises(BadInput, match="device must be auto, cpu, cuda or cuda:N"):
        pick_device(wanted)


@pytest.mark.parametrize(("count", "wanted"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_device_must_be_there(count: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(BadInput, match=f"'{wanted}' is not there: this machine has {count} CUDA"):
        pick_device(wanted)


def test_a_tiny_volume_goes_through_a_3d_model(tmp_path: Path) -> None:
    study = make_study(tmp_path, 2, "volume", shapes=((5, 4, 3),))
    assert segmenter_of("unet3d").predict(Volume(study.array(0), np.eye(4)), 2).shape == (5, 4, 3)
