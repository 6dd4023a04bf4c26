"""Every view and every signal equals a plain, slow, obviously right computation."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from datastore.volume_io import is_here
from infers import gradients as gradients_module
from infers import views as views_module
from infers.augmented import Rotation, angles
from infers.dropout import PassStream, active_dropout, dropout_modules, repeat
from infers.engine import PoolViews, Segmenter
from infers.gradients import item_gradients, weight_gradients
from infers.source import Source
from loop.errors import BadInput
from loop.pool import WHOLE, ItemTable, Pool
from loop.signals import PoolMean, Signal, sweep, sweep_mean
from loop.sweeping import SweepSource
from loop.views import (
    Augmentations,
    Augmented,
    Difficulty,
    Dropout,
    Ensemble,
    Features,
    Gradients,
    Head,
    HeadView,
    PredictedLoss,
    Probs,
    View,
    Votes,
)
from models import ModelSpec, heads
from models.preprocess import normalised
from models.weights import WeightsFolder
from models.windows import windows
from strategies import _signals

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = ((9, 17, 4), (12, 8, 5))
AXIS = 2
DIMS = ("2-D", "3-D")
NAMES = {"2-D": "unet2d", "3-D": "unet3d"}


class Small(nn.Module):
    """A little U-Net with everything that the default ones have."""

    def __init__(self, dims: int, channels_out: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        up = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        drop = nn.Dropout2d if dims == 2 else nn.Dropout3d
        self.down = nn.Sequential(conv(1, 4, 3, 2, 1), norm(4), nn.ReLU(inplace=True))
        self.bottleneck = nn.Sequential(conv(4, 6, 3, 1, 1), norm(6), nn.Tanh(), drop(0.1))
        self.mix = conv(10, 5, 3, 1, 1)
        self.drop = drop(0.1)
        self.up = up(5, 4, 2, 2)
        self.smooth = conv(4, 4, 3, 1, 2, dilation=2, bias=False)
        self.head = conv(4, channels_out, 1)

    def forward(self, data: Tensor) -> Tensor:
        skip = self.down(data)
        mixed = torch.relu_(self.mix(torch.cat([skip, self.bottleneck(skip)], 1)))
        out: Tensor = self.head(torch.sigmoid(self.smooth(torch.relu(self.up(self.drop(mixed))))))
        return out


def small_spec(dims: str, **changes: Any) -> ModelSpec:
    n = int(dims[0])
    spec = ModelSpec(
        name="small",
        labels=("a", "b"),
        spatial_dims=n,
        build=lambda channels: Small(n, channels),
        divisor=2,
        largest_patch=64,
        feature_layer="bottleneck",
        head_layer="head",
        bottleneck_conv="bottleneck.0",
        decoder_convs=("mix", "smooth"),
        loss_layers=(("down", 4), ("bottleneck", 6), ("up", 4), ("smooth", 4)),
    )
    return replace(spec, **changes)


def weights_of(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Seeded weights, sharpened, with running statistics that are not those of the start."""
    weights = spec.network(seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for key, value in weights.items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        if key.endswith("weight") and value.ndim > 3:
            value.mul_(3)
    return weights


def segmenter_of(spec: ModelSpec, members: int = 0, batch: int = 3, seed: int = 0) -> Segmenter:
    return Segmenter(
        spec,
        weights_of(spec, 7),
        device=CPU,
        batch=batch,
        members=[weights_of(spec, 20 + n) for n in range(members)],
        seed=seed,
    )


@dataclass
class Study:
    """Images on disk and the pool of their items."""

    sources: list[Source]
    pool: Pool

    def views(self, segmenter: Segmenter) -> PoolViews:
        return PoolViews(segmenter, self.pool, self.sources, unreadable=lambda image_id, reason: None)

    def item(self, row: int) -> Tensor:
        """The whole normalised image of a row."""
        return normalised(np.asanyarray(nib.load(self.sources[int(self.pool.volume[row])].path).dataobj))

    def collect(self, segmenter: Segmenter, view: View, rows: Sequence[int] | None = None) -> dict[int, Any]:
        """{row: what the view holds of it, with a batch axis of one}."""
        views, found = self.views(segmenter), dict[int, Any]()
        for batch in views.batches(np.arange(len(self.pool)) if rows is None else np.array(rows)):
            value = views.compute(batch, frozenset({view}))[view]
            found.update({int(row): part(value, at) for at, row in enumerate(batch.rows)})
        return found


def part(value: Any, at: int) -> Any:
    if isinstance(value, Tensor):
        return value[at : at + 1]
    return type(value)(**{name: tensor[at : at + 1] for name, tensor in vars(value).items()})


def make_study(folder: Path, unit: str, shapes: Sequence[tuple[int, ...]] = SHAPES, axis: int = AXIS) -> Study:
    rng, sources = np.random.default_rng(5), []
    for number, shape in enumerate(shapes):
        path = folder / f"image_{number}.nii.gz"
        nib.save(nib.Nifti1Image(np.cumsum(rng.normal(0, 1, shape), axis=0).astype(np.float32), np.eye(4)), path)
        sources.append(Source(f"image_{number}", path, axis))
    lengths = [1 if unit == "volume" else shape[axis] for shape in shapes]
    volume = np.repeat(np.arange(len(shapes)), lengths)
    position = np.full(len(volume), WHOLE) if unit == "volume" else np.concatenate([np.arange(n) for n in lengths])
    none = np.zeros(len(volume), bool)
    return Study(
        sources, Pool(ItemTable([s.image_id for s in sources], volume, position), none, none, volume, volume, position)
    )


def padded(item: Tensor, divisor: int) -> Tensor:
    """(1, 1, *S) with zeros at the far ends."""
    return nn.functional.pad(item, [x for size in reversed(item.shape) for x in (0, -size % divisor)])[None, None]


def close(found: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **({"atol": 1e-5, "rtol": 1e-4} | tolerance))


def inputs_of(study: Study, segmenter: Segmenter, row: int) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The network's inputs, alone, that an item is made of, and their sizes without padding."""
    image, position = study.item(row), int(study.pool.position[row])
    if segmenter.spec.spatial_dims == 3:
        return [(padded(image, segmenter.spec.divisor), tuple(image.shape))]
    slices = image.movedim(study.sources[0].axis, 0)
    chosen = slices if position == WHOLE else slices[position : position + 1]
    return [(padded(item, segmenter.spec.divisor), tuple(item.shape)) for item in chosen]


def cut(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return maps[(..., *(slice(0, n) for n in size))]


def as_item(study: Study, segmenter: Segmenter, row: int, maps: Sequence[Tensor]) -> Tensor:
    """Maps (1, ..., *S) of the inputs as the item's."""
    position = int(study.pool.position[row])
    if segmenter.spec.spatial_dims == 2:
        return torch.stack(list(maps), -1) if position == WHOLE else maps[0]
    return maps[0] if position == WHOLE else maps[0].select(maps[0].ndim - 3 + study.sources[0].axis, position)


CASES = list(product(DIMS, ["slice", "volume"]))


# --- one forward pass: probabilities, features, head


@pytest.mark.parametrize(("dims", "unit"), CASES)
def test_head_and_features_equal_a_plain_computation(tmp_path: Path, dims: str, unit: str) -> None:
    study, segmenter = make_study(tmp_path, unit), segmenter_of(models.get(NAMES[dims], labels=("a", "b")))
    network: Any = segmenter.network
    heads, features, probs = (study.collect(segmenter, view) for view in (Head(), Features(), Probs()))
    for row in range(len(study.pool)):
        zs, ps, vectors = [], [], []
        for data, size in inputs_of(study, segmenter, row):
            with torch.inference_mode():
                skips = [data := stage(data) for stage in network.encoder]
                data = bottom = network.bottleneck(data)
                for stage, skip in zip(network.decoder, skips[::-1], strict=True):
                    data = stage(torch.cat([skip, data], 1))
                zs.append(cut(data, size))
                ps.append(cut(network.head(data), size).softmax(1))
            if segmenter.spec.spatial_dims == 3 and unit == "slice":
                depth = bottom.shape[2 + AXIS]
                place = int(study.pool.position[row]) * depth // padded(study.item(row), 8).shape[2 + AXIS]
                bottom = bottom.select(2 + AXIS, place)
            vectors.append(bottom.flatten(2).mean(2))
        close(heads[row].z, as_item(study, segmenter, row, zs), atol=1e-4)
        close(heads[row].probs, as_item(study, segmenter, row, ps))
        close(probs[row], heads[row].probs)
        close(features[row], torch.stack(vectors).mean(0))


@pytest.mark.parametrize("dims", DIMS)
def test_probabilities_features_and_head_share_one_forward_pass(tmp_path: Path, dims: str) -> None:
    study, segmenter = make_study(tmp_path, "slice", SHAPES[:1]), segmenter_of(small_spec(dims), batch=64)
    ran = list[int]()
    segmenter.network.register_forward_hook(lambda layer, args, out: ran.append(1))
    views = study.views(segmenter)
    (batch,) = views.batches(np.arange(len(study.pool)))
    found = views.compute(batch, frozenset({Probs(), Features(), Head()}))
    assert len(ran) == 1
    assert found.keys() == {Probs(), Features(), Head()}


def with_heads(spec: ModelSpec) -> Segmenter:
    """With both auxiliary heads, at random weights."""
    weights = weights_of(spec, 7)
    for name in heads.names():
        drawn = {key: torch.randn(value.shape) for key, value in heads.build(name, spec, 0).state_dict().items()}
        weights |= heads.named(name, drawn)
    return Segmenter(spec, weights, device=CPU, batch=3)


def keep(seen: dict[str, Tensor], name: str, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
    """A forward hook."""
    seen[name] = out


@pytest.mark.parametrize("loss_layers", ["small", "unet"])
@pytest.mark.parametrize(("dims", "unit"), CASES)
def test_predicted_loss_and_difficulty_equal_a_plain_computation(
    tmp_path: Path, dims: str, unit: str, loss_layers: str
) -> None:
    spec = small_spec(dims) if loss_layers == "small" else models.get(NAMES[dims], labels=("a", "b"))
    study, segmenter = make_study(tmp_path, unit), with_heads(spec)
    predicted, difficulty = (study.collect(segmenter, view) for view in (PredictedLoss(), Difficulty()))
    for row in range(len(study.pool)):
        losses, maps = [], []
        for data, size in inputs_of(study, segmenter, row):
            seen = dict[str, Tensor]()
            layers = {name: segmenter.network.get_submodule(name) for name, _ in spec.loss_layers}
            hooks = [layer.register_forward_hook(partial(keep, seen, name)) for name, layer in layers.items()]
            with torch.inference_mode():
                probs = cut(segmenter.network(data), size).softmax(1)
                maps.append(segmenter.heads["deal"](probs)[:, 0])
                levels = [seen[name] for name, _ in spec.loss_layers]
                if spec.spatial_dims == 3 and unit == "slice":
                    position, length = int(study.pool.position[row]), data.shape[2 + AXIS]
                    places = [int((position + 0.5) * level.shape[2 + AXIS] / length) for level in levels]
                    levels = [level.select(2 + AXIS, place) for level, place in zip(levels, places, strict=True)]
                vectors = torch.cat([level.flatten(2).mean(2) for level in levels], 1)
                losses.append(segmenter.heads["learning_loss"](vectors))
            for hook in hooks:
                hook.remove()
        close(predicted[row], torch.stack(losses).mean(0), rtol=1e-3)
        close(difficulty[row], as_item(study, segmenter, row, maps))
    assert len({round(float(value), 6) for value in predicted.values()}) == len(study.pool)


def test_in_windows_the_heads_see_all_of_a_volume(tmp_path: Path) -> None:
    spec = small_spec("3-D", patch=(8, 8, 8))
    study, segmenter = make_study(tmp_path, "volume", [(8, 8, 8), (13, 9, 10)]), with_heads(spec)
    predicted, difficulty = (study.collect(segmenter, view) for view in (PredictedLoss(), Difficulty()))
    probs = study.collect(segmenter, Probs())
    for row, value in difficulty.items():
        close(value, segmenter.heads["deal"](probs[row])[:, 0].detach())
    alone = Segmenter(small_spec("3-D"), None, device=CPU)
    alone.network, alone.heads = segmenter.network, segmenter.heads
    whole = study.collect(alone, PredictedLoss())
    close(predicted[0], whole[0])
    # Each window sees its own surroundings, and what overlaps counts twice.
    close(predicted[1], whole[1], rtol=0.5, atol=1)
    assert torch.isfinite(predicted[1])


@pytest.mark.parametrize("dims", DIMS)
def test_the_heads_share_the_one_forward_pass(tmp_path: Path, dims: str) -> None:
    study, segmenter = make_study(tmp_path, "slice", SHAPES[:1]), with_heads(small_spec(dims))
    segmenter.batch, ran = 64, list[int]()
    segmenter.network.register_forward_hook(lambda layer, args, out: ran.append(1))
    views = study.views(segmenter)
    (batch,) = views.batches(np.arange(len(study.pool)))
    wanted = frozenset({Probs(), Features(), PredictedLoss(), Difficulty()})
    assert views.compute(batch, wanted).keys() == wanted
    assert len(ran) == 1


@pytest.mark.parametrize("view", [PredictedLoss(), Difficulty()])
def test_a_head_that_was_not_trained_is_refused_with_the_way_out(tmp_path: Path, view: View) -> None:
    study = make_study(tmp_path, "slice")
    with pytest.raises(BadInput, match=r"trained without the head .*: train again, with `heads`"):
        study.collect(segmenter_of(small_spec("2-D")), view)


def test_the_head_is_the_last_convolution_on_at_least_16_channels() -> None:
    for name in NAMES.values():
        spec = models.get(name, labels=("a", "b", "c"))
        head = spec.network(0).get_submodule(spec.head_layer)
        assert isinstance(head, nn.Conv2d | nn.Conv3d)
        assert set(head.kernel_size) == {1}
        assert (head.in_channels >= 16, head.out_channels) == (True, 4)


@pytest.mark.parametrize("which", ["head_layer", "feature_layer", "bottleneck_conv", "decoder_convs"])
def test_a_layer_that_the_model_does_not_name_is_refused(tmp_path: Path, which: str) -> None:
    study, spec = make_study(tmp_path, "slice"), small_spec("2-D", **{which: () if which == "decoder_convs" else ""})
    views: dict[str, View] = {
        "head_layer": Head(),
        "feature_layer": Features(),
        "bottleneck_conv": Gradients("bottleneck"),
        "decoder_convs": Gradients("decoder"),
    }
    with pytest.raises(BadInput, match="'small' does not say"):
        study.collect(segmenter_of(spec), views[which])


# --- dropout


def naive_passes(segmenter: Segmenter, data: Tensor, view: Dropout, seed: int) -> Tensor:
    """(T, n, C, *S) of T whole forward passes."""
    with (
        torch.random.fork_rng(devices=[]),
        active_dropout(dropout_modules(segmenter.spec, segmenter.network), view.rate),
        torch.inference_mode(),
    ):
        torch.manual_seed(seed)
        return torch.stack([segmenter.network(data).softmax(1) for _ in range(view.passes)])


def prefix_passes(segmenter: Segmenter, data: Tensor, view: Dropout, seed: int) -> Tensor:
    modules, kept = dropout_modules(segmenter.spec, segmenter.network), list[Tensor]()
    with torch.random.fork_rng(devices=[]), active_dropout(modules, view.rate):
        torch.manual_seed(seed)
        repeat(segmenter.network, modules, lambda: segmenter.network(data).softmax(1), view.passes, kept.append)
    return torch.stack(kept)


def random_input(dims: str, n: int = 2) -> Tensor:
    return torch.randn(n, 1, *(16, 24, 8)[: int(dims[0])], generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """Everything that makes keeping outputs dangerous: changes in place, modules that run twice, lists."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 3, 1)
        self.split, self.drop = Split(), nn.Dropout2d(0.2, inplace=True)

    def forward(self, data: Tensor) -> Tensor:
        x = self.first(data)
        parts = self.split(x)
        x = self.twice(x)
        x += 1
        x = self.drop(x)
        x = self.twice(torch.relu_(x))
        x += parts.pop()
        out: Tensor = self.last(torch.cat([x, parts.pop()], 1))
        return out


class Split(nn.Module):
    def forward(self, data: Tensor) -> list[Tensor]:
        return [data * 2, data * 3]


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["small 2-D", "small 3-D", "unet2d", "unet3d", "in place"])
def test_passes_with_the_prefix_kept_are_those_without(kind: str, rate: float) -> None:
    dims = "3-D" if "3" in kind else "2-D"
    spec = models.get(kind, labels=("a", "b")) if kind.startswith("unet") else small_spec(dims)
    if kind == "in place":
        spec = small_spec(dims, build=lambda channels: InPlace())
    segmenter, data = Segmenter(spec, None, device=CPU), random_input(dims)
    found, expected = (how(segmenter, data, Dropout(5, rate), 3) for how in (prefix_passes, naive_passes))
    assert torch.equal(found, expected)
    assert found.var(0).max() > 0
    assert all("forward" not in module.__dict__ for module in segmenter.network.modules())


@pytest.mark.parametrize("dims", DIMS)
def test_what_comes_before_the_first_dropout_runs_once(dims: str) -> None:
    spec = models.get(NAMES[dims], labels=("a",))
    segmenter, ran = Segmenter(spec, None, device=CPU), dict[str, int]()

    def count(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: Any) -> Tensor:
            ran[name] = ran.get(name, 0) + 1
            return forward(*args)

        return counted

    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for name, module in segmenter.network.named_modules():
        if isinstance(module, convolutions):
            module.forward = count(name, module.forward)  # type: ignore[method-assign]
    prefix_passes(segmenter, random_input(dims), Dropout(7, 0.1), 0)
    for name, times in ran.items():
        assert times == (1 if name.startswith(("encoder", "bottleneck")) else 7), name
    assert any(name.startswith("decoder") for name in ran)
    assert any(name.startswith("bottleneck") for name in ran)


@pytest.mark.parametrize("fails", [False, True])
def test_dropout_leaves_the_network_as_it_was(tmp_path: Path, fails: bool) -> None:
    study, segmenter = make_study(tmp_path, "slice"), segmenter_of(models.get("unet2d", labels=("a",)))
    network: Any = segmenter.network
    network.decoder[0][1].p = 0.3
    weights = {key: value.clone() for key, value in network.state_dict().items()}

    def modes() -> list[tuple[bool, float | None]]:
        return [(module.training, getattr(module, "p", None)) for module in network.modules()]

    before, state = modes(), torch.get_rng_state()
    if fails:
        handle = network.decoder[1].register_forward_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.collect(segmenter, Dropout(3, 0.5))
        handle.remove()
    else:
        study.collect(segmenter, Dropout(3, 0.5))
    assert modes() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("count", [1, 2, 9])
def test_streamed_moments_equal_those_of_the_stack(count: int) -> None:
    # Nearly equal and near one: what a difference of sums of squares would lose.
    generator = torch.Generator().manual_seed(0)
    p = 0.999 + 1e-5 * torch.rand(count, 2, 1, 4, 4, generator=generator)
    probs, stream = torch.cat([p, 1 - p], 2), PassStream()
    for one in probs:
        stream.add(one)
    found, exact = stream.passes(), probs.double()
    close(found.mean, exact.mean(0).float(), rtol=1e-6)
    close(found.variance, exact.var(0, correction=0).float(), atol=1e-15, rtol=2e-2)
    close(found.expected_entropy, -(exact * exact.log()).sum(2).mean(0).float(), atol=1e-8)
    assert (found.variance >= 0).all()


@pytest.mark.parametrize(("dims", "unit"), CASES)
def test_dropout_of_items_is_of_their_probabilities(tmp_path: Path, dims: str, unit: str) -> None:
    """Without a rate every pass is the prediction; with one, passes vary, the same for the same seed."""
    study, segmenter = make_study(tmp_path, unit), segmenter_of(small_spec(dims))
    still, probs = study.collect(segmenter, Dropout(3, 0.0)), study.collect(segmenter, Probs())
    for row, passes in still.items():
        close(passes.mean, probs[row])
        close(passes.variance, torch.zeros_like(probs[row]))
        close(passes.expected_entropy, -(probs[row] * probs[row].log()).sum(1))
    state = torch.get_rng_state()
    moved, again = (study.collect(segmenter, Dropout(4, 0.5)) for _ in range(2))
    other = study.collect(segmenter_of(small_spec(dims), seed=1), Dropout(4, 0.5))
    assert torch.equal(torch.get_rng_state(), state)
    for row, passes in moved.items():
        assert passes.variance.flatten(1).max() > 1e-5
        assert torch.equal(passes.variance, again[row].variance)
        assert not torch.equal(passes.variance, other[row].variance)
        assert passes.mean.shape == passes.variance.shape == probs[row].shape


@pytest.mark.parametrize("passes", [1, 2, 6])
def test_the_engine_equals_naive_passes_with_the_same_numbers(tmp_path: Path, passes: int) -> None:
    study, spec = make_study(tmp_path, "slice", [(16, 8, 3)]), small_spec("2-D")
    segmenter, view = segmenter_of(spec, batch=3), Dropout(passes, 0.3)
    found = study.collect(segmenter, view)
    data = study.item(0).movedim(AXIS, 0)[:, None]
    stacked = naive_passes(segmenter, data, view, views_module._seed(0, f"image_0/{[0, 1, 2]}/0"))
    for row in range(3):
        p = stacked[:, row].double()
        close(found[row].mean[0], p.mean(0).float())
        close(found[row].variance[0], p.var(0, correction=0).float())
        close(found[row].expected_entropy[0], -(p * p.log()).sum(1).mean(0).float())


def test_a_network_without_dropout_is_refused(tmp_path: Path) -> None:
    study, spec = make_study(tmp_path, "slice"), small_spec("2-D", build=lambda channels: nn.Conv2d(1, channels, 1))
    with pytest.raises(BadInput, match="'small' has no dropout layer"):
        study.collect(Segmenter(spec, None, device=CPU), Dropout(2, 0.5))


def test_only_the_declared_dropout_is_drawn_from() -> None:
    spec = small_spec("2-D", dropout_layers=("drop",))
    segmenter = Segmenter(spec, None, device=CPU)
    network: Any = segmenter.network
    assert dropout_modules(spec, network) == [network.drop]
    with active_dropout(dropout_modules(spec, network), 0.7):
        assert (network.drop.training, network.drop.p, network.bottleneck[3].training) == (True, 0.7, False)


# --- test-time augmentation


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 360])
def test_right_angles_are_exact_both_ways(degrees: int) -> None:
    maps = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    there, back = Rotation(7, 7, degrees, CPU), Rotation(7, 7, -degrees, CPU)
    assert torch.equal(back(there(maps)), maps)
    assert torch.equal(there(maps), torch.rot90(maps, -degrees // 90, (2, 3)))
    assert bool(there.inside.all())
    assert bool(back.inside.all())


@pytest.mark.parametrize("shape", [(40, 40), (30, 48)])
@pytest.mark.parametrize("degrees", [7.5, -10])
def test_a_turn_is_rigid_and_its_inverse_brings_a_smooth_map_back(shape: tuple[int, int], degrees: float) -> None:
    height, width = shape
    y, x = np.mgrid[:height, :width]

    def bump(cy: float, cx: float) -> np.ndarray:
        found: np.ndarray = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 30)
        return found

    maps = torch.from_numpy(bump(height / 2 - 7, width / 2 + 6)).float()
    there, back = Rotation(height, width, degrees, CPU), Rotation(height, width, -degrees, CPU)
    turned = there(maps)
    a, dy, dx = math.radians(-degrees), -7 + 0.5, 6 + 0.5
    cy, cx = (
        (height - 1) / 2 + math.cos(a) * dy - math.sin(a) * dx,
        (width - 1) / 2 + math.sin(a) * dy + math.cos(a) * dx,
    )
    close(turned[there.inside], torch.from_numpy(bump(cy, cx)).float()[there.inside], atol=0.02)
    close(back(turned)[back.inside], maps[back.inside], atol=0.03)
    # Valid is what the turn of an all-valid canvas, with nothing beyond it, keeps whole.
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    assert not any(bool(back.inside[at]) for at in corners)
    assert 0.7 < back.inside.float().mean() < 1


@pytest.mark.parametrize(("dims", "unit"), CASES)
def test_unturned_unnoised_views_are_the_prediction(tmp_path: Path, dims: str, unit: str) -> None:
    study, segmenter = make_study(tmp_path, unit), segmenter_of(small_spec(dims))
    probs = study.collect(segmenter, Probs())
    for row, views in study.collect(segmenter, Augmented(3, 0, 0)).items():
        close(views.mean, probs[row])
        close(views.expected_entropy, -(probs[row] * probs[row].log()).sum(1))
        assert bool(views.valid.all())
        assert views.valid.shape == views.expected_entropy.shape == probs[row][:, 0].shape


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("dims", DIMS)
def test_augmented_views_equal_a_plain_loop(tmp_path: Path, dims: str, axis: int) -> None:
    study = make_study(tmp_path, "volume", [(10, 12, 8)], axis)
    spec = small_spec(dims)
    segmenter, view = segmenter_of(spec, batch=64), Augmented(4, 10.0, 0.0)
    found = study.collect(segmenter, view)[0]
    # Slices first, so that both kinds of model turn the last two axes.
    slices = study.item(0).movedim(axis, 0)
    size = tuple(slices.shape[1:])
    probs, valid = [], torch.ones(size, dtype=torch.bool)
    for angle in angles(4, 10.0, 0):
        there, back = Rotation(*size, angle, CPU), Rotation(*size, -angle, CPU)
        turned = there(slices)
        with torch.inference_mode():
            if dims == "2-D":
                p = segmenter.network(turned[:, None]).softmax(1).movedim(1, 0)
            else:
                p = segmenter.network(turned.movedim(0, axis)[None, None]).softmax(1)[0].movedim(1 + axis, 1)
        probs.append(back(p))
        valid &= back.inside
    stack = torch.stack(probs)  # (V, C, n, H, W)
    to_item = (
        (lambda maps: maps.movedim(-3, -1)) if dims == "2-D" else (lambda maps: maps.movedim(-3, maps.ndim - 3 + axis))
    )
    close(found.mean[0], to_item(stack.mean(0)))
    close(found.expected_entropy[0], to_item(-(stack * stack.log()).sum(1).mean(0)))
    assert torch.equal(found.valid[0], to_item(valid.expand(slices.shape)))
    assert 0 < valid.float().mean() < 1


def test_augmentation_is_seeded_and_noise_matters(tmp_path: Path) -> None:
    study, spec = make_study(tmp_path, "slice", SHAPES[:1]), small_spec("2-D")
    state = torch.get_rng_state()
    first, again = (study.collect(segmenter_of(spec), Augmented(3))[1].mean for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, study.collect(segmenter_of(spec, seed=1), Augmented(3))[1].mean)
    assert not torch.equal(first, study.collect(segmenter_of(spec), Augmented(3, 10, 0.5))[1].mean)


# --- ensembles


@pytest.mark.parametrize(("dims", "unit"), CASES)
def test_votes_equal_a_plain_count(tmp_path: Path, dims: str, unit: str) -> None:
    study, spec = make_study(tmp_path, unit), small_spec(dims)
    segmenter = segmenter_of(spec, members=4)
    found = study.collect(segmenter, Ensemble(3))
    alone = [study.collect(Segmenter(spec, weights_of(spec, 20 + n), device=CPU), Probs()) for n in range(3)]
    shares = set[float]()
    for row, votes in found.items():
        stack = torch.stack([probs[row] for probs in alone])
        close(votes.mean, stack.mean(0))
        modal = stack.argmax(2).mode(0).values
        share = (stack.argmax(2) == modal).float().mean(0)
        close(votes.modal_share, share)
        shares |= set(share.unique().tolist())
    assert len(shares) > 1


def test_too_small_an_ensemble_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path, "slice")
    with pytest.raises(BadInput, match="ensemble of 3 is asked for, but only 2 are there"):
        study.collect(segmenter_of(small_spec("2-D"), members=2), Ensemble(3))


@pytest.mark.parametrize(("asked", "voting"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_a_sweep_lets_the_newest_published_weights_vote(tmp_path: Path, asked: int, voting: int) -> None:
    study, warnings = make_study(tmp_path, "slice"), list[str]()
    spec = models.get("unet2d", labels=("a", "b"))
    folder = WeightsFolder(tmp_path / "models")
    published = [
        folder.publish(weights_of(spec, seed), {"labels": labels}, at=seed)
        for seed, labels in ((1, ["a", "b"]), (2, ["a", "b"]), (3, ["other"]), (4, ["a", "b"]))
    ]
    folder.rollback(published[1], at=9)
    located = {s.image_id: {"path": s.path, "axis": AXIS, "version": 1} for s in study.sources}
    worker: Any = SimpleNamespace(
        spec=spec,
        weights=folder,
        config=SimpleNamespace(device="cpu", sweep_batch=8, seed=0),
        workplace=SimpleNamespace(root=tmp_path, state=tmp_path),
        fetching=lambda image_id: is_here,
        loop=SimpleNamespace(catalogue=SimpleNamespace(located=lambda: located)),
        report=lambda **progress: None,
        unreadable=lambda image_id, reason: None,
        warn=warnings.append,
    )
    need = _signals.ensemble_entropy(asked)
    found = SweepSource(worker, published[1])(study.pool, (need,)).signals[need.name]
    members = [published[at] for at in (1, 3, 0)][:voting]
    alone = Segmenter(spec, None, device=CPU, members=[folder.load(digest) for digest in members])
    np.testing.assert_allclose(
        found, swept(study, alone, [_signals.ensemble_entropy(voting)])[f"ensemble_entropy_M{voting}"], rtol=1e-4
    )
    assert warnings == (["An ensemble of 5 is asked for; 3 published weights vote."] if asked == 5 else [])


# --- gradients


def plain_gradient(
    segmenter: Segmenter, data: Tensor, crop: Callable[[Tensor], Tensor], names: Sequence[str], bias: bool
) -> Tensor:
    """One input, all of autograd: the gradient of mean log p(yhat)."""
    network = segmenter.network
    tensors = []
    for name in names:
        conv: Any = network.get_submodule(name)
        tensors += [conv.weight, *([conv.bias] if bias and conv.bias is not None else [])]
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    log_p = crop(network(data)).log_softmax(1)
    score = log_p.max(1).values.mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(score, tensors)])


def expected_gradient(study: Study, segmenter: Segmenter, row: int, layer: str) -> Tensor:
    spec, position = segmenter.spec, int(study.pool.position[row])
    names = (spec.bottleneck_conv,) if layer == "bottleneck" else spec.decoder_convs
    found = []
    for data, size in inputs_of(study, segmenter, row):

        def crop(maps: Tensor, size: tuple[int, ...] = size) -> Tensor:
            maps = cut(maps, size)
            return maps if spec.spatial_dims == 2 or position == WHOLE else maps.select(2 + AXIS, position)

        found.append(plain_gradient(segmenter, data, crop, names, layer == "bottleneck"))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("layer", ["bottleneck", "decoder"])
@pytest.mark.parametrize(("dims", "unit"), CASES)
@pytest.mark.parametrize("default", [False, True])
def test_gradients_equal_autograd_one_image_at_a_time(
    tmp_path: Path, dims: str, unit: str, layer: Any, default: bool
) -> None:
    study = make_study(tmp_path, unit, [(9, 16, 3), (9, 8, 2)])
    spec = models.get(NAMES[dims], labels=("a", "b")) if default else small_spec(dims)
    segmenter = segmenter_of(spec, batch=2)
    found = study.collect(segmenter, Gradients(layer))
    assert sorted(found) == list(range(len(study.pool)))
    for row in range(len(study.pool)):
        expected = expected_gradient(study, segmenter, row, layer)
        scale = float(expected.abs().max())
        assert scale > 0
        close(found[row][0], expected, atol=2e-5 * max(scale, 0.01), rtol=1e-3)


@pytest.mark.parametrize("layer", ["bottleneck", "decoder"])
def test_kept_entries_are_those_of_the_whole_gradient(
    tmp_path: Path, layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, segmenter = make_study(tmp_path, "slice", SHAPES[:1]), segmenter_of(small_spec("2-D"))
    whole = study.collect(segmenter, Gradients(layer))[1]
    total = whole.shape[1]
    assert total == {"bottleneck": 6 * 4 * 9 + 6, "decoder": 5 * 10 * 9 + 4 * 4 * 9}[layer]
    for keep in (1, 36, 40, total - 1, total, total + 1):
        close(study.collect(segmenter, Gradients(layer, keep=keep))[1], whole[:, :keep])
    for indices in ((0,), (total - 1, 3, 3, 100), (5, 4)):
        close(study.collect(segmenter, Gradients(layer, indices=indices))[1], whole[:, list(indices)])
    monkeypatch.setattr(gradients_module, "_NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr(views_module, "_PIXELS_AT_ONCE", {"cpu": 1})
    close(study.collect(segmenter, Gradients(layer))[1], whole)
    for indices in ((total,), (-1, 2)):
        with pytest.raises(ValueError, match=f"has {total} entries"):
            study.collect(segmenter, Gradients(layer, indices=indices))


@pytest.mark.parametrize(("stride", "dilation", "padding"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 3, 0)])
@pytest.mark.parametrize("dims", DIMS)
def test_weight_gradients_of_any_plain_convolution(dims: str, stride: int, dilation: int, padding: int) -> None:
    conv = (nn.Conv2d if dims == "2-D" else nn.Conv3d)(2, 3, 3, stride, padding, dilation, dtype=torch.float64)
    data = torch.randn(4, 2, *(9, 8, 10)[: int(dims[0])], dtype=torch.float64)
    out = conv(data)
    slope = torch.randn_like(out)
    found = weight_gradients(conv, data, slope[:, :2])
    for item in range(4):
        (expected,) = torch.autograd.grad(conv(data[item : item + 1]), [conv.weight], slope[item : item + 1])
        close(found[item], expected[:2].flatten())


def test_one_forward_and_one_backward_pass_a_batch_that_stops_at_the_layer() -> None:
    segmenter, data = Segmenter(small_spec("2-D"), None, device=CPU), random_input("2-D", 5)
    network: Any = segmenter.network
    forward, backward = list[str](), list[str]()

    def watch(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, args: Any, out: Tensor) -> None:
            forward.append(name)
            if out.requires_grad:
                out.register_hook(lambda slope: backward.append(name))

        return look

    names = ("down.0", "bottleneck.0", "mix", "up", "smooth", "head")
    for name in names:
        network.get_submodule(name).register_forward_hook(watch(name))
    before = [parameter.requires_grad for parameter in network.parameters()]

    def scores(maps: Tensor) -> list[Tensor]:
        return [maps.log_softmax(1).amax(1).flatten(1).mean(1)]

    views: list[tuple[Gradients, list[str]]] = [
        (Gradients("bottleneck"), ["head", "smooth", "up", "mix"]),
        (Gradients("decoder"), ["head", "smooth", "up"]),
    ]
    for view, behind in views:
        forward.clear()
        backward.clear()
        found = item_gradients(segmenter.spec, network, data, scores, view)
        assert len(found) == 5
        assert not found.requires_grad
        assert tuple(forward) == names
        # The layer itself needs no gradient until it was caught, and nothing before it needs one at all.
        assert backward == behind
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("changed", [{"groups": 2}, {"padding": "same"}, {"padding_mode": "reflect"}], ids=str)
def test_other_convolutions_are_refused(changed: dict[str, Any]) -> None:
    class Odd(Small):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.smooth = nn.Conv2d(4, 4, 3, **({"padding": 1} | changed))

    spec = small_spec("2-D", build=lambda channels: Odd())
    with pytest.raises(BadInput, match="smooth of the model 'small' must be a plain convolution"):
        item_gradients(
            spec, spec.network(0).eval(), random_input("2-D"), lambda maps: [maps.sum()], Gradients("decoder")
        )


# --- large volumes


def test_windows_cover_a_volume() -> None:
    spec = small_spec("3-D", patch=(8, 16, 4))
    covered = torch.zeros(30, 16, 10)
    found = windows(spec, (30, 16, 10))
    for window in found:
        assert covered[window].shape == (8, 16, 4)
        covered[window] += 1
    assert covered.min() >= 1
    assert windows(spec, (8, 10, 4)) == [(slice(0, 8), slice(0, 10), slice(0, 4))]


@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_large_volumes_are_the_mean_over_their_windows(tmp_path: Path, unit: str) -> None:
    study = make_study(tmp_path, unit, [(13, 8, 11)])
    spec = small_spec("3-D", patch=(8, 8, 8))
    segmenter = segmenter_of(spec)
    image = padded(study.item(0), 2)
    features, grads = study.collect(segmenter, Features()), study.collect(segmenter, Gradients("decoder"))
    head, probs = study.collect(segmenter, Head()), study.collect(segmenter, Probs())
    network: Any = segmenter.network
    for row in range(len(study.pool)):
        vectors, slopes = [], []
        for window in windows(spec, tuple(image.shape[2:])):
            at = int(study.pool.position[row]) - window[AXIS].start
            if unit == "slice" and not 0 <= at < 8:
                continue
            data = image[(..., *window)]
            bottom = network.bottleneck(network.down(data)).detach()
            vectors.append((bottom if unit == "volume" else bottom[..., at // 2, None]).flatten(2).mean(2))

            def crop(maps: Tensor, window: Any = window, at: int = at) -> Tensor:
                maps = cut(maps, tuple(n - part.start for n, part in zip((13, 8, 11), window, strict=True)))
                return maps if unit == "volume" else maps[..., at]

            slopes.append(plain_gradient(segmenter, data, crop, spec.decoder_convs, bias=False))
        close(features[row], torch.stack(vectors).mean(0))
        close(grads[row][0], torch.stack(slopes).mean(0), atol=1e-6)
        close(head[row].probs, probs[row], atol=1e-4)
        assert head[row].z.shape[2:] == probs[row].shape[2:]
    for view in (Dropout(2, 0.5), Augmented(2)):
        value = study.collect(segmenter, view)[0]
        assert value.mean.shape == probs[0].shape


def test_resampled_images_have_maps_on_the_own_grid_and_the_head_on_the_networks(tmp_path: Path) -> None:
    for dims, spacing in (("2-D", (2.0, 1.0)), ("3-D", (1.0, 1.0, 0.5))):
        study, segmenter = make_study(tmp_path, "slice", SHAPES[:1]), segmenter_of(small_spec(dims, spacing=spacing), 2)
        for view in (Dropout(2, 0.5), Augmented(3), Ensemble(2)):
            for value in study.collect(segmenter, view).values():
                assert value.mean.shape == (1, 3, 9, 17)
                assert all(tensor.shape[-2:] == (9, 17) for tensor in vars(value).values())
        heads = study.collect(segmenter, Head())
        assert {tuple(head.z.shape) for head in heads.values()} == {(1, 4, 4 if dims == "2-D" else 9, 17)}
        assert len(study.collect(segmenter, Features())) == len(study.collect(segmenter, Gradients("decoder"))) == 4


# --- batches


VIEWS: tuple[View, ...] = (
    Features(),
    Head(),
    Ensemble(2),
    Augmented(3, 10, 0.0),
    Gradients("bottleneck"),
    Gradients("decoder"),
)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_batches_equal_one_by_one(tmp_path: Path, view: View) -> None:
    study, spec = make_study(tmp_path, "slice"), small_spec("2-D")
    many = study.collect(segmenter_of(spec, 2, batch=64), view)
    one = study.collect(segmenter_of(spec, 2, batch=1), view, [8, 2, 0, 5])
    for row, value in one.items():
        for found, expected in zip(
            *(list(vars(v).values()) if not isinstance(v, Tensor) else [v] for v in (value, many[row])), strict=True
        ):
            close(found, expected)


def test_mixed_views_in_one_sweep_are_each_as_alone(tmp_path: Path) -> None:
    study, segmenter = make_study(tmp_path, "slice"), segmenter_of(small_spec("2-D"), 2)
    signals = [
        _signals.FOREGROUND_FRACTION,
        _signals.BOTTLENECK_FEATURES,
        _signals.ALGES_IMAGE,
        _signals.ALGES_SEMANTIC,
        _signals.mc_bald(3, 0.5),
        _signals.mc_class_variance(3, 0.5),
        _signals.tta_divergence(3),
        _signals.variance_ratio(2),
        _signals.gradients("bottleneck", keep=50),
    ]
    together = swept(study, segmenter, signals)
    for signal in signals:
        np.testing.assert_allclose(
            swept(study, segmenter, [signal])[signal.name], together[signal.name], rtol=1e-5, atol=1e-7
        )
    assert together["gradients_bottleneck_first50"].shape == (9, 50)
    assert together["alges_image"].shape == (9, 12)


def swept(study: Study, segmenter: Segmenter, signals: Sequence[Signal]) -> dict[str, np.ndarray]:
    parts: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
    sweep(
        study.views(segmenter), signals, np.arange(len(study.pool)), lambda rows, values: parts.append((rows, values))
    )
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    return {s.name: np.concatenate([values[s.name] for _, values in parts])[order] for s in signals}


def test_the_fisher_diagonal_is_the_mean_of_squares(tmp_path: Path) -> None:
    study, segmenter = make_study(tmp_path, "slice"), segmenter_of(small_spec("2-D"))
    signal, rows = _signals.gradients("decoder"), np.array([1, 7, 3, 3])
    fisher = sweep_mean(study.views(segmenter), PoolMean("fisher", signal.view, lambda view: view.square(), rows))
    expected = np.mean(swept(study, segmenter, [signal])[signal.name][rows].astype(float) ** 2, axis=0)
    assert fisher.dtype == np.float64
    np.testing.assert_allclose(fisher, expected, rtol=1e-3, atol=1e-10)


# --- reductions


@pytest.fixture(params=[(5, 6), (4, 3, 5)], ids=DIMS)
def space(request: pytest.FixtureRequest) -> tuple[int, ...]:
    shape: tuple[int, ...] = request.param
    return shape


def probs_of(space: tuple[int, ...], *lead: int, seed: int = 0) -> Tensor:
    """(*lead, B = 2, C = 3, *S), some of it saturated."""
    logits = 4 * torch.randn(*lead, 2, 3, *space, generator=torch.Generator().manual_seed(seed))
    logits[..., 0, 0, :2] += 200
    return logits.softmax(len(lead) + 1)


def pixels(space: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return np.ndindex(*space)


def entropy(p: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def test_class_signals(space: tuple[int, ...]) -> None:
    probs = probs_of(space)
    for item in range(2):
        at = [probs[(item, slice(None), *index)].tolist() for index in pixels(space)]
        fractions, weighted = np.mean(at, 0), np.mean([np.array(p) * entropy(p) for p in at], 0)
        np.testing.assert_allclose(_signals.CLASS_FRACTIONS.reduce(probs)[item], fractions, rtol=1e-5)
        np.testing.assert_allclose(_signals.CLASS_ENTROPY.reduce(probs)[item], weighted, rtol=1e-4)


def test_dropout_signals(space: tuple[int, ...]) -> None:
    stack, stream = probs_of(space, 5), PassStream()
    for one in stack:
        stream.add(one)
    passes = stream.passes()
    for item in range(2):
        at = [stack[(slice(None), item, slice(None), *index)].double().numpy() for index in pixels(space)]
        per_class = np.mean([p.var(0) for p in at], 0)
        bald = np.mean([entropy(p.mean(0)) - np.mean([entropy(one) for one in p]) for p in at])
        expected = {
            _signals.mc_variance(5, 0.5): per_class.mean(),
            _signals.mc_variance(5, 0.5, background=False): per_class[1:].mean(),
            _signals.mc_class_variance(5, 0.5): per_class,
            _signals.mc_mean_std(5, 0.5): np.mean([p.std(0) for p in at]),
            _signals.mc_bald(5, 0.5): bald,
        }
        for signal, value in expected.items():
            assert signal.view == Dropout(5, 0.5)
            np.testing.assert_allclose(signal.reduce(passes)[item], value, rtol=1e-4)
    same = PassStream()
    for _ in range(3):
        same.add(stack[0])
    assert (_signals.mutual_information(same.passes()) >= 0).all()


def test_augmentation_signal(space: tuple[int, ...]) -> None:
    stack = probs_of(space, 4)
    valid = torch.rand(2, *space, generator=torch.Generator().manual_seed(1)) < 0.5
    valid[1] = False
    views = Augmentations(stack.mean(0), torch.stack([entropy_of(p) for p in stack]).mean(0), valid)
    signal = _signals.tta_divergence(4, 5.0, 0.02)
    assert signal.view == Augmented(4, 5.0, 0.02)
    p = stack[:, 0].double().numpy()
    found = [
        entropy(p[(slice(None), slice(None), *index)].mean(0))
        - np.mean([entropy(one[(slice(None), *index)]) for one in p])
        for index in pixels(space)
        if valid[(0, *index)]
    ]
    np.testing.assert_allclose(signal.reduce(views), [np.mean(found), 0], rtol=1e-4)


def entropy_of(probs: Tensor) -> Tensor:
    return -torch.xlogy(probs, probs).sum(1)


def test_ensemble_signals(space: tuple[int, ...]) -> None:
    stack = probs_of(space, 5, seed=3)
    best = stack.argmax(2)
    votes = Votes(stack.mean(0), torch.stack([(best == k).float().mean(0) for k in range(3)]).amax(0))
    for item in range(2):
        ratio, unsure = [], []
        for index in pixels(space):
            classes = best[(slice(None), item, *index)].tolist()
            ratio.append(1 - max(classes.count(k) for k in range(3)) / 5)
            unsure.append(entropy(stack[(slice(None), item, slice(None), *index)].mean(0).tolist()))
        assert float(_signals.variance_ratio(5).reduce(votes)[item]) == pytest.approx(np.mean(ratio), rel=1e-4)
        assert float(_signals.ensemble_entropy(5).reduce(votes)[item]) == pytest.approx(np.mean(unsure), rel=1e-4)


def head_of(space: tuple[int, ...]) -> tuple[HeadView, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, *space, generator=generator)
    head = (nn.Conv2d if len(space) == 2 else nn.Conv3d)(4, 3, 1)
    return HeadView(z, head(z).softmax(1).detach()), head


def test_alges_image_is_the_gradient_of_the_cross_entropy(space: tuple[int, ...]) -> None:
    view, head = head_of(space)
    found = _signals.ALGES_IMAGE.reduce(view)
    for item in range(2):
        logits = head(view.z[item : item + 1])
        loss = nn.functional.cross_entropy(logits, logits.argmax(1))
        (expected,) = torch.autograd.grad(loss, [head.weight])  # type: ignore[list-item]
        close(found[item], expected.flatten())


def test_alges_semantic_sums_the_norms_of_the_pixels_gradients(space: tuple[int, ...]) -> None:
    view, head = head_of(space)
    found = _signals.ALGES_SEMANTIC.reduce(view)
    for item in range(2):
        expected = [0.0] * 3
        for index in pixels(space):
            z = view.z[(slice(item, item + 1), slice(None), *index)].reshape(1, 4, *(1 for _ in space))
            logits = head(z)
            best = int(logits.argmax(1))
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, logits.argmax(1)), [head.weight])  # type: ignore[list-item]
            expected[best] += float(slope.norm())
        np.testing.assert_allclose(found[item], expected, rtol=1e-4)


def test_a_sure_prediction_has_no_gradient() -> None:
    probs = torch.zeros(1, 3, 2, 2)
    probs[:, 1] = 1
    view = HeadView(torch.ones(1, 4, 2, 2), probs)
    assert not _signals.ALGES_IMAGE.reduce(view).any()
    assert not _signals.ALGES_SEMANTIC.reduce(view).any()


def test_names_hold_the_parameters_and_are_names_of_folders() -> None:
    signals = [
        _signals.CLASS_FRACTIONS,
        _signals.CLASS_ENTROPY,
        _signals.FOREGROUND_FRACTION,
        _signals.BOTTLENECK_FEATURES,
        _signals.ALGES_IMAGE,
        _signals.ALGES_SEMANTIC,
        *(_signals.mc_variance(t, p, background=b) for t in (17, 20) for p in (0.5, 0.1) for b in (True, False)),
        *(
            make(t, 0.5)
            for make in (_signals.mc_class_variance, _signals.mc_mean_std, _signals.mc_bald)
            for t in (5, 6)
        ),
        *(_signals.tta_divergence(v, r, n) for v in (8, 9) for r in (10.0, 5.0) for n in (0.01, 1e-5)),
        *(make(m) for make in (_signals.variance_ratio, _signals.ensemble_entropy) for m in (3, 5)),
        _signals.gradients("bottleneck"),
        _signals.gradients("decoder"),
        _signals.gradients("bottleneck", keep=10_000),
        _signals.gradients("decoder", indices=(1, 2)),
        _signals.gradients("decoder", indices=(2, 1)),
    ]
    names = [signal.name for signal in signals]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") for name in names)
    assert _signals.mc_variance(17, 0.5).name == "mc_variance_T17_p0.5"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dropout(0, 0.5),
        lambda: Dropout(2, 1.0),
        lambda: Augmented(0),
        lambda: Augmented(2, -1),
        lambda: Ensemble(0),
        lambda: Gradients("encoder"),  # type: ignore[arg-type]
        lambda: Gradients("decoder", keep=0),
        lambda: Gradients("decoder", indices=()),
        lambda: Gradients("decoder", keep=1, indices=(1,)),
    ],
)
def test_views_that_make_no_sense_are_refused(make: Callable[[], View]) -> None:
    with pytest.raises(ValueError, match=r"needs|must|takes"):
        make()


def test_passes_are_not_kept() -> None:
    segmenter, data = Segmenter(small_spec("2-D"), None, device=CPU), random_input("2-D")
    modules, alive = dropout_modules(segmenter.spec, segmenter.network), list[int]()
    given: list[weakref.ref[Tensor]] = []

    def take(probs: Tensor) -> None:
        given.append(weakref.ref(probs))
        alive.append(sum(probs() is not None for probs in given))

    repeat(segmenter.network, modules, lambda: segmenter.network(data), 20, take)
    assert max(alive) <= 2
