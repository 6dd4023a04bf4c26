"""Every view of some inputs of one image, each computed once, on the device."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from infers.augmented import Rotation, angles
from infers.dropout import PassStream, active_dropout, dropout_modules, repeat
from infers.gradients import item_gradients
from loop.errors import BadInput
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
    Passes,
    PredictedLoss,
    Probs,
    View,
    Votes,
    likeliest,
)
from models.heads import pooled
from models.preprocess import Prepared, restore
from models.spec import ModelSpec
from models.windows import fits, logits, through_windows, windows

_PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22}
"""Most in one forward and backward pass, which keeps its activations: beyond, a CPU's cache or a GPU's memory is too small."""


class Networks(Protocol):
    """What looks: a network in prediction mode, its auxiliary heads by name, and the members of an ensemble."""

    spec: ModelSpec
    network: nn.Module
    heads: Mapping[str, nn.Module]
    members: Sequence[nn.Module]
    device: torch.device
    seed: int


@dataclass(frozen=True)
class Inputs:
    """Some inputs of one image.

    Attributes:
        data: (n, 1, *padded) of prepared.data, on the device.
        name: says which inputs these are; their random numbers follow from it and from the seed.
        slices: of a 3-D model's volume, the slices that are the items; None where the inputs are the items.
    """

    prepared: Prepared
    data: Tensor
    name: str
    slices: Sequence[int] | None = None

    @property
    def network_slices(self) -> list[int] | None:
        """The slices' places on the network's grid: nearest where the image was resampled."""
        if self.slices is None:
            return None
        native, size = (grid[self.prepared.axis] for grid in (self.prepared.native, self.prepared.resampled))
        return [int((position + 0.5) * size / native) for position in self.slices]

    def cut(self, maps: Tensor) -> Tensor:
        """Maps on the network's grid without the padding."""
        return maps[(..., *(slice(0, size) for size in self.prepared.resampled))]


def look(networks: Networks, inputs: Inputs, views: frozenset[View]) -> dict[View, Any]:
    """The views of the items; probabilities, features, what the head sees and the auxiliary heads share one forward pass.

    Raises:
        BadInput: the model lacks the layer that a view is about, the weights a head, or the ensemble a member.
    """
    shared = views & {Probs(), Features(), Head(), PredictedLoss(), Difficulty()}
    found: dict[View, Any] = _look_once(networks, inputs, shared) if shared else {}
    for view in views - shared:
        match view:
            case Dropout():
                found[view] = _on_items(inputs, _dropout(networks, inputs, view))
            case Augmented():
                found[view] = _on_items(inputs, _augmented(networks, inputs, view))
            case Ensemble():
                found[view] = _on_items(inputs, _votes(networks, inputs, view))
            case Gradients():
                found[view] = _gradients(networks, inputs, view)
    return found


def volume_of_slices(parts: Sequence[dict[View, Any]]) -> dict[View, Any]:
    """A volume's views from those of its slices: all slices' pixels are its pixels, its vectors are the slices' mean."""

    def joined(view: View) -> Any:
        values = [part[view] for part in parts]
        if isinstance(view, Features | Gradients | PredictedLoss):
            return torch.cat(values).mean(0, keepdim=True)
        return _each(lambda *maps: torch.cat(maps).movedim(0, -1)[None], *values)

    return {view: joined(view) for view in parts[0]}


def _each(change: Callable[..., Tensor], *values: Any) -> Any:
    """`change` of the tensor, or of each field."""
    if isinstance(values[0], Tensor):
        return change(*values)
    return type(values[0])(
        **{field.name: change(*(getattr(value, field.name) for value in values)) for field in fields(values[0])}
    )


def _on_items(inputs: Inputs, value: Any, slices: Sequence[int] | None = None) -> Any:
    """Maps of a volume, cut into its slices where those are the items."""
    at = inputs.slices if slices is None else slices
    if at is None:
        return value
    return _each(lambda maps: maps[0].movedim(maps.ndim - 4 + inputs.prepared.axis, 0)[list(at)], value)


def _autocast(device: torch.device) -> Any:
    return torch.autocast(device.type, enabled=device.type == "cuda")


def probabilities(networks: Networks, network: nn.Module, data: Tensor) -> Tensor:
    """(n, 1, *padded) -> softmax (n, C, *padded) float32."""
    with _autocast(networks.device):
        found = logits(networks.spec, network, data)
    return torch.softmax(found.float(), dim=1)


# --- one forward pass


def _look_once(networks: Networks, inputs: Inputs, views: frozenset[View]) -> dict[View, Any]:
    spec, network = networks.spec, networks.network
    whole = fits(spec, tuple(inputs.data.shape[2:]))
    seen: dict[str, Tensor] = {}

    def run(data: Tensor) -> Any:
        out = network(data).float()
        return (out, seen["z"].float()) if Head() in views else out

    averaged = _averaged_layers(networks, views)
    with torch.inference_mode(), _autocast(networks.device), ExitStack() as hooks:
        if Head() in views:
            hooks.enter_context(_seen_before(_layer(spec, network, "head_layer"), seen, "z"))
        for name in averaged:
            hooks.enter_context(_seen_after(network.get_submodule(name), seen, name))
        found: dict[View, Any] = {}
        if whole or views - {Features(), PredictedLoss()}:
            out = through_windows(spec, run, inputs.data)
            maps, z = out if isinstance(out, tuple) else (out, None)
            probs = torch.softmax(maps, dim=1)
            if Probs() in views:
                found[Probs()] = _on_items(inputs, restore(inputs.prepared, probs))
            if z is not None:
                head = HeadView(inputs.cut(z), inputs.cut(probs))
                found[Head()] = _on_items(inputs, head, inputs.network_slices)
            if Difficulty() in views:
                difficulty = _auxiliary(networks, Difficulty.head)(inputs.cut(probs))
                found[Difficulty()] = _on_items(inputs, restore(inputs.prepared, difficulty)[:, 0])
        if averaged:
            vectors = _averages(networks, inputs, seen, averaged, whole)
            if Features() in views:
                found[Features()] = vectors[spec.feature_layer]
            if PredictedLoss() in views:
                levels = torch.cat([vectors[name] for name, _ in spec.loss_layers], dim=1)
                found[PredictedLoss()] = _auxiliary(networks, PredictedLoss.head)(levels).float()
    return found


def _auxiliary(networks: Networks, name: str) -> nn.Module:
    if name not in networks.heads:
        raise BadInput(f"These weights were trained without the head {name!r}: train again, with `heads` naming it.")
    return networks.heads[name]


def _averaged_layers(networks: Networks, views: frozenset[View]) -> list[str]:
    """Names of the modules whose outputs are wanted as means over space."""
    spec, wanted = networks.spec, list[str]()
    if Features() in views:
        _layer(spec, networks.network, "feature_layer")
        wanted.append(spec.feature_layer)
    if PredictedLoss() in views:
        _auxiliary(networks, PredictedLoss.head)
        wanted += [name for name, _ in spec.loss_layers]
    return list(dict.fromkeys(wanted))


def _layer(spec: ModelSpec, network: nn.Module, which: str) -> nn.Module:
    name = getattr(spec, which)
    if not name:
        raise BadInput(f"The model {spec.name!r} does not say what its {which} is.")
    return network.get_submodule(name)


def _seen_before(layer: nn.Module, seen: dict[str, Tensor], key: str) -> Any:
    return layer.register_forward_pre_hook(lambda layer, args: seen.update({key: args[0]}))


def _seen_after(layer: nn.Module, seen: dict[str, Tensor], key: str) -> Any:
    return layer.register_forward_hook(lambda layer, args, out: seen.update({key: out}))


def _averages(
    networks: Networks, inputs: Inputs, seen: dict[str, Tensor], layers: Sequence[str], whole: bool
) -> dict[str, Tensor]:
    """{layer: (B, d)} of its output; that is in `seen` already if the input went through whole."""

    def of_window(window: tuple[slice, ...], slices: Sequence[int] | None) -> Tensor:
        if not whole:
            networks.network(inputs.data[(..., *window)])
        if slices is None:
            return pooled(seen[layer] for layer in layers)
        axis = inputs.prepared.axis
        length = window[axis].stop - window[axis].start
        return torch.cat([_at_slices(seen[layer].float(), axis, slices, length) for layer in layers], dim=1)

    vectors = _mean_over_windows(networks, inputs, of_window)
    return dict(zip(layers, vectors.split([seen[layer].shape[1] for layer in layers], dim=1), strict=True))


def _at_slices(maps: Tensor, axis: int, slices: Sequence[int], length: int) -> Tensor:
    """(len(slices), d) means over the places along the axis of (1, d, *S') that are nearest to slices of `length`."""
    by_place = maps[0].movedim(1 + axis, 0).flatten(2).mean(2)
    return by_place[[int((at + 0.5) * len(by_place) / length) for at in slices]]


def _mean_over_windows(
    networks: Networks, inputs: Inputs, of_window: Callable[[tuple[slice, ...], Sequence[int] | None], Tensor]
) -> Tensor:
    """(B, D) mean of an item's vectors over the windows that it reaches into: one window if the input is small.

    Args:
        of_window: called with the window and the places in it of the slices that it holds, or None if the inputs are the
            items; gives a vector for each.
    """
    axis, slices = inputs.prepared.axis, inputs.network_slices
    n = len(inputs.data) if slices is None else len(slices)
    total, count = torch.zeros(n, 0), torch.zeros(n, 1, device=networks.device)
    for window in windows(networks.spec, tuple(inputs.data.shape[2:])):
        rows, places = list(range(n)), None
        if slices is not None:
            start, stop = window[axis].start, window[axis].stop
            rows = [row for row, at in enumerate(slices) if start <= at < stop]
            places = [slices[row] - start for row in rows]
        if rows:
            values, index = of_window(window, places), torch.tensor(rows, device=networks.device)
            total = total if total.shape[1] else values.new_zeros(n, values.shape[1])
            total.index_add_(0, index, values)
            count.index_add_(0, index, torch.ones(len(rows), 1, device=networks.device))
    return total / count


# --- many forward passes


@contextmanager
def _seeded(networks: Networks, name: str) -> Iterator[None]:
    """torch's generators follow from the seed and the name, and are left as they were."""
    with torch.random.fork_rng(devices=[networks.device] if networks.device.type == "cuda" else []):
        torch.manual_seed(_seed(networks.seed, name))
        yield


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])


def _dropout(networks: Networks, inputs: Inputs, view: Dropout) -> Passes:
    spec, network = networks.spec, networks.network
    modules = dropout_modules(spec, network)
    stream = PassStream()

    def run() -> Tensor:
        return probabilities(networks, network, inputs.data)

    def take(probs: Tensor) -> None:
        stream.add(restore(inputs.prepared, probs))

    with _seeded(networks, inputs.name), active_dropout(modules, view.rate):
        if fits(spec, tuple(inputs.data.shape[2:])):
            repeat(network, modules, run, view.passes, take)
        else:
            # Each window has a prefix of its own: kept for all of them it would not fit into memory.
            with torch.no_grad():
                for _ in range(view.passes):
                    take(run())
    return stream.passes()


def _augmented(networks: Networks, inputs: Inputs, view: Augmented) -> Augmentations:
    """The views are turned within the grid without padding, which is then padded as the item itself is."""
    prepared, axis = inputs.prepared, inputs.prepared.axis
    item = inputs.cut(inputs.data)
    padding = [
        amount
        for have, want in zip(reversed(item.shape[2:]), reversed(inputs.data.shape[2:]), strict=True)
        for amount in (0, want - have)
    ]

    def turn(rotation: Rotation, maps: Tensor) -> Tensor:
        if maps.ndim == 4:
            return rotation(maps)
        return rotation(maps.movedim(2 + axis, 2)).movedim(2, 2 + axis)

    size = item.shape[2:] if item.ndim == 4 else torch.Size(n for at, n in enumerate(item.shape[2:]) if at != axis)
    stream, inside = PassStream(), torch.ones(tuple(size), dtype=torch.bool, device=networks.device)
    with torch.inference_mode(), _seeded(networks, inputs.name):
        for number, angle in enumerate(angles(view.count, view.rotation_degrees, networks.seed)):
            if number == 0:
                stream.add(restore(prepared, probabilities(networks, networks.network, inputs.data)))
                continue
            there, back = (Rotation(size[0], size[1], turned, networks.device) for turned in (angle, -angle))
            noisy = turn(there, item) + view.noise * torch.randn_like(item)
            probs = probabilities(networks, networks.network, functional.pad(noisy, padding))
            stream.add(restore(prepared, turn(back, inputs.cut(probs))))
            inside &= back.inside
        share = inside if item.ndim == 4 else inside.unsqueeze(axis).expand(item.shape[2:])
        # Resampled pixels that touch one outside are outside.
        valid = restore(prepared, share[None, None].float())[:, 0] > 1 - 1e-4
        passes = stream.passes()
        return Augmentations(passes.mean, passes.expected_entropy, valid.expand(passes.expected_entropy.shape))


def _votes(networks: Networks, inputs: Inputs, view: Ensemble) -> Votes:
    if len(networks.members) < view.members:
        raise BadInput(f"An ensemble of {view.members} is asked for, but only {len(networks.members)} are there.")
    total = votes = torch.zeros(())
    with torch.inference_mode():
        for member in networks.members[: view.members]:
            probs = restore(inputs.prepared, probabilities(networks, member, inputs.data))
            vote = torch.zeros_like(probs).scatter_(1, likeliest(probs)[1][:, None], 1)
            total, votes = (probs, vote) if total.ndim == 0 else (total + probs, votes + vote)
        return Votes(total / view.members, votes.amax(1) / view.members)


# --- gradients


def _gradients(networks: Networks, inputs: Inputs, view: Gradients) -> Tensor:
    """(B, D), without autocast; a window's padding has no part in its score."""
    axis = inputs.prepared.axis

    def of_window(window: tuple[slice, ...], slices: Sequence[int] | None) -> Tensor:
        real = [slice(0, size - part.start) for size, part in zip(inputs.prepared.resampled, window, strict=True)]

        def scores(maps: Tensor) -> list[Tensor]:
            maps = maps[(..., *real)]
            return [_score(maps)] if slices is None else [_score(maps.select(2 + axis, at)) for at in slices]

        data = inputs.data[(..., *window)]
        at_once = max(1, _PIXELS_AT_ONCE[networks.device.type] // data[0, 0].numel())
        parts = [item_gradients(networks.spec, networks.network, part, scores, view) for part in data.split(at_once)]
        return torch.cat(parts)

    return _mean_over_windows(networks, inputs, of_window)


def _score(maps: Tensor) -> Tensor:
    """(n,) mean_S log p(yhat) of logits (n, C, *S)."""
    return likeliest(torch.log_softmax(maps, dim=1))[0].flatten(1).mean(1)
