"""Networks and their specs, preprocessing and its way back, weights by digest."""

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from loop.errors import BadInput, NotFound
from models import ModelSpec, _registry
from models.plans import Plans
from models.preprocess import IGNORED, as_items, normalised, prepare, prepare_label, restore
from models.weights import WeightsFolder, load_into, read_weights

LABELS = ("liver", "spleen")
NAMES = models.names()
PLANS = Plans.read(Path(__file__).parent / "plans_2d.json")
SPACING = (1.0, 1.0, 3.0)


def spec_of(name: str, **changes: Any) -> ModelSpec:
    return replace(models.get(name, labels=LABELS, plans=PLANS), **changes)


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


# --- specs and the registry


def test_models_are_served_under_url_parts() -> None:
    assert {"unet2d", "unet3d"} <= set(NAMES)
    assert sorted(NAMES) == NAMES
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in NAMES)
    with pytest.raises(NotFound, match=r"'unet4d'\. Known: .*unet2d, unet3d"):
        models.get("unet4d", labels=LABELS)


def test_register_refuses_taken_and_wrong_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_factories", {})
    factory = models.unet.unet2d
    models.register("mine", factory)
    with pytest.raises(ValueError, match="'mine' is already registered"):
        models.register("mine", factory)
    with pytest.raises(ValueError, match="must match"):
        models.register("U-Net", factory)
    assert models.names() == ["mine"]


@pytest.mark.parametrize("key", ["spacing", "patch"])
@pytest.mark.parametrize(
    ("value", "message"),
    [((16,), "must have 2 numbers"), ((16, 16, 16), "got 3"), ((16, 0), "positive"), ((-16, 16), "positive")],
)
def test_spacing_and_patch_must_fit(key: str, value: tuple[int, ...], message: str) -> None:
    with pytest.raises(BadInput, match=f"{key}.*{message}"):
        models.get("unet2d", labels=LABELS, **{key: value})


def test_a_patch_is_rounded_up_to_what_the_network_can_halve() -> None:
    assert spec_of("unet3d", patch=(8, 9, 50)).whole_patch == (8, 16, 56)
    assert spec_of("unet3d").whole_patch == ()


# --- networks


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_the_same_for_the_same_seed_and_leave_the_global_generator_alone(name: str) -> None:
    spec, before = spec_of(name), torch.get_rng_state()
    first, same, other = (spec.network(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_goes_through_the_network_and_back(name: str, axis: int) -> None:
    spec, shape = spec_of(name), (19, 11, 5)
    prepared = prepare(spec, volume(shape), SPACING, axis)
    assert not any(size % n for size, n in zip(prepared.data.shape[2:], spec.divisors, strict=True))
    with torch.inference_mode():
        logits = restore(prepared, spec.network(0).eval()(prepared.data))
    native = tuple(np.delete(shape, axis)) if spec.spatial_dims == 2 else shape
    assert prepared.native == native
    assert logits.shape == (shape[axis] if spec.spatial_dims == 2 else 1, len(LABELS) + 1, *native)


@pytest.mark.parametrize("name", NAMES)
def test_the_feature_layer_is_the_bottleneck(name: str) -> None:
    spec = spec_of(name)
    network, seen = spec.network(0).eval(), []
    network.get_submodule(spec.feature_layer).register_forward_hook(lambda layer, args, out: seen.append(out.shape))
    with torch.inference_mode():
        network(torch.zeros(2, 1, *(n * size for n, size in zip(spec.divisors, (2, 3, 4), strict=False))))
    assert [shape[2:] for shape in seen] == [(2, 3, 4)[: spec.spatial_dims]]


# --- preprocessing


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8, ">i2", ">f4"])
def test_normalised_voxels_have_mean_0_and_deviation_1(dtype: Any) -> None:
    voxels = normalised(volume((12, 10, 8)).astype(dtype))
    assert voxels.dtype == torch.float32
    assert voxels.mean().item() == pytest.approx(0, abs=1e-5)
    assert voxels.std().item() == pytest.approx(1, abs=1e-2)


def test_outliers_are_clipped_and_gain_and_offset_do_not_matter() -> None:
    array = volume((12, 10, 8))
    spoiled = array.copy()
    spoiled[0, 0, 0], spoiled[1, 1, 1] = 1e6, -1e6
    assert (normalised(spoiled) - normalised(array)).abs().flatten()[2:].quantile(0.98) < 0.1
    np.testing.assert_allclose(normalised(3 * array + 7), normalised(array), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 1, 1)])
@pytest.mark.parametrize("value", [0, -1000, 1e6])
def test_a_constant_image_becomes_zeros(shape: tuple[int, ...], value: float) -> None:
    assert not normalised(np.full(shape, value, np.float32)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(bad: float) -> None:
    array = volume((4, 4, 4))
    array[1, 2, 3] = bad
    with pytest.raises(BadInput, match="NaN or infinite"):
        prepare(spec_of("unet2d"), array, SPACING, 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_preparing_and_restoring_without_spacing_is_the_identity(axis: int) -> None:
    array = volume((9, 16, 3))
    for name in NAMES:
        spec = spec_of(name, spacing=(), normalise=None)
        prepared = prepare(spec, array, SPACING, axis)
        assert torch.equal(restore(prepared, prepared.data), as_items(spec, normalised(array), axis))
    slices = prepare(spec_of("unet2d"), array, SPACING, axis).data
    expected = normalised(array).numpy()
    for index in range(array.shape[axis]):
        flat = expected.take(index, axis)
        np.testing.assert_array_equal(slices[index, 0, : flat.shape[0], : flat.shape[1]], flat)


@pytest.mark.parametrize(
    ("name", "target", "axis", "resampled"),
    [
        ("unet2d", (2.0, 0.5), 2, (10, 18)),
        ("unet2d", (1.0, 1.0), 0, (9, 15)),
        ("unet2d", (100.0, 100.0), 2, (1, 1)),
        ("unet3d", (2.0, 1.0, 1.5), 0, (10, 9, 10)),
    ],
)
def test_resampling_goes_to_the_spacing_and_back(
    name: str, target: tuple[float, ...], axis: int, resampled: tuple[int, ...]
) -> None:
    spec, shape = spec_of(name, spacing=target), (20, 9, 5)
    ramp = np.broadcast_to(np.linspace(0, 1, 20, dtype=np.float32)[:, None, None], shape)
    prepared = prepare(spec, ramp, SPACING, axis)
    assert prepared.resampled == resampled
    back = restore(prepared, prepared.data)
    expected = as_items(spec, normalised(ramp), axis)
    assert back.shape == expected.shape
    if min(resampled) > 1:
        assert (back - expected).abs().mean() < 0.05
    assert prepare_label(spec, np.zeros(shape, np.uint8), SPACING, axis).shape == prepared.data[:, 0].shape


def test_labels_are_resampled_to_the_nearest_and_padded_with_ignored() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (5, 6, 2)).astype(np.uint8)
    target = prepare_label(spec_of("unet2d", spacing=(0.5, 1.0)), mask, SPACING, 2)
    assert target.shape == (2, 16, 8)
    assert target.dtype == torch.uint8
    np.testing.assert_array_equal(target[:, :10, :6], mask.repeat(2, axis=0).transpose(2, 0, 1))
    assert (target[:, 10:] == IGNORED).all()
    assert (target[:, :, 6:] == IGNORED).all()
    coarse = prepare_label(spec_of("unet2d", spacing=(1.0, 3.0)), mask, SPACING, 2)
    np.testing.assert_array_equal(coarse[:, :5, :2], mask[:, 1::3].transpose(2, 0, 1))


# --- weights

Folder = WeightsFolder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return WeightsFolder(tmp_path / "unet2d")


def tensors(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), value), "b": torch.arange(4)}


def plant(folder: Folder, data: bytes) -> str:
    """A file of weights with a right digest and a card, however it came there."""
    digest = hashlib.sha256(data).hexdigest()[:16]
    folder.folder.mkdir(parents=True, exist_ok=True)
    (folder.folder / f"{digest}.pt").write_bytes(data)
    (folder.folder / f"{digest}.json").write_text('{"published_at": 0}')
    return digest


def test_published_weights_are_current_and_come_back(folder: Folder) -> None:
    assert folder.current() is None
    assert [folder.digests(), folder.cards(), folder.history()] == [[], [], []]
    digest = folder.publish(tensors(1), {"dice": np.float64(0.5)}, at=10)
    reopened = WeightsFolder(folder.folder)
    assert reopened.current() == digest
    assert reopened.card(digest) == {"dice": 0.5, "digest": digest, "published_at": 10}
    loaded = reopened.load(digest)
    assert loaded.keys() == tensors(1).keys()
    assert all(torch.equal(loaded[key], value) for key, value in tensors(1).items())


def test_the_digest_is_of_the_content(folder: Folder, tmp_path: Path) -> None:
    digest = folder.publish(tensors(1), {}, at=0)
    assert digest == hashlib.sha256(folder.path(digest).read_bytes()).hexdigest()[:16]
    assert WeightsFolder(tmp_path / "other").publish(tensors(1), {"other": "card"}, at=9) == digest
    assert folder.publish(tensors(2), {}, at=0) != digest


def test_rollback_and_history(folder: Folder) -> None:
    first, second = (folder.publish(tensors(value), {}, at=value) for value in (1, 2))
    assert folder.current() == second
    folder.rollback(first, at=3)
    assert folder.current() == first
    assert [(entry["digest"], entry["at"], entry["how"]) for entry in folder.history()] == [
        (first, 1, "published"),
        (second, 2, "published"),
        (first, 3, "rolled back"),
    ]
    assert [card["digest"] for card in folder.cards()] == [first, second]
    assert folder.load(second)["a"][0, 0] == 2


def test_further_members_of_an_ensemble_are_kept_and_never_in_use(folder: Folder) -> None:
    other, first = (folder.publish(tensors(value), {}, at=value) for value in (1, 2))
    second, third = (
        folder.publish(tensors(5 - member), {"member": member, "of": first}, at=3, current=False) for member in (2, 1)
    )
    assert folder.current() == first
    assert [entry["digest"] for entry in folder.history()] == [other, first]
    assert folder.members(first) == [first, third, second]
    assert folder.members(other) == [other]
    with pytest.raises(BadInput, match=f"only vote beside {first}: roll back to those"):
        folder.rollback(second, at=4)
    assert folder.current() == first


@pytest.mark.parametrize("digest", ["0" * 16, "", "../../../etc/passwd", "0" * 15 + "G", "current"])
def test_unknown_weights_are_not_found(folder: Folder, digest: str) -> None:
    known = folder.publish(tensors(1), {}, at=0)
    for asked in (folder.card, folder.path, folder.load, lambda name: folder.rollback(name, 1)):
        with pytest.raises(NotFound, match=known):
            asked(digest)
    assert folder.current() == known


def test_weights_without_a_card_were_never_published(folder: Folder) -> None:
    first, second = (folder.publish(tensors(value), {}, at=0) for value in (1, 2))
    (folder.folder / f"{first}.json").unlink()
    assert folder.digests() == [second]
    assert [card["digest"] for card in folder.cards()] == [second]
    with pytest.raises(NotFound):
        folder.load(first)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:99] + b"?" + data[100:]])
def test_damaged_weights_are_refused(folder: Folder, damage: Callable[[bytes], bytes]) -> None:
    digest = folder.publish(tensors(1), {}, at=0)
    file = folder.path(digest)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match=f"{digest} are damaged"):
        folder.load(digest)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.mkdir, (self.target,)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dump", [pickle.dumps, saved, lambda value: saved({"code": value, **tensors(1)})])
def test_code_in_weights_is_refused_and_not_run(
    folder: Folder, tmp_path: Path, dump: Callable[[object], bytes]
) -> None:
    data = dump(Evil(tmp_path / "ran"))
    with pytest.raises(BadInput, match="plain tensors"):
        folder.load(plant(folder, data))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"garbage", b".", saved(tensors(1))[:-40], saved([1]), saved({"a": 1}), saved({1: 2})]
)
def test_only_named_tensors_are_weights(data: bytes) -> None:
    with pytest.raises(BadInput, match="Weights must be a "):
        read_weights(data)


def test_weights_of_another_network_are_refused() -> None:
    spec = spec_of("unet2d")
    smaller = models.get("unet2d", labels=LABELS[:1]).network(0).state_dict()
    with pytest.raises(BadInput, match=r"do not fit the model 'unet2d'.*size mismatch"):
        load_into(spec.network(0), smaller, spec.name)
    with pytest.raises(BadInput, match="do not fit"):
        load_into(spec.network(0), {}, spec.name)


def test_concurrent_publishes_all_survive(folder: Folder) -> None:
    folders = [folder, WeightsFolder(folder.folder)]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda i: folders[i % 2].publish(tensors(i % 12), {}, at=i), range(24)))
    assert folder.digests() == sorted(set(digests))
    assert len(set(digests)) == 12
    assert folder.current() in digests
    assert sorted(entry["digest"] for entry in folder.history()) == sorted(digests)
    for i, digest in enumerate(digests):
        assert folder.load(digest)["a"][0, 0] == i % 12
    assert not [file for file in folder.folder.iterdir() if file.name.startswith(".")]


def test_a_failed_publish_leaves_everything_as_it_was(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder.publish(tensors(1), {}, at=0)
    before = {file.name: file.read_bytes() for file in folder.folder.iterdir()}

    def fails(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        folder.publish(tensors(2), {}, at=1)
    assert {file.name: file.read_bytes() for file in folder.folder.iterdir()} == before
    assert folder.current() == first
