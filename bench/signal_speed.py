"""What batching gradients and keeping the prefix of MC dropout save, beside the plain ways, with equal results asserted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

import models
from bench.sweep_speed import Data, Seconds
from bench.tables import median_of, table
from datastore.volume_io import read_volume
from infers.dropout import active_dropout, dropout_modules, repeat
from infers.engine import Segmenter, pick_device
from infers.views import Inputs, look, probabilities
from loop.views import Dropout, Gradients, View
from models.preprocess import prepare

_AXIS = 2
"""The slice axis of all the data here, which the catalogue finds by itself."""

_PASSES = Dropout(20, 0.5)
_GRADIENTS = {
    "bottleneck, first 10 000": Gradients("bottleneck", keep=10_000),
    "decoder": Gradients("decoder"),
}


@dataclass
class Compared:
    """One thing computed in several ways; the first is ours."""

    data: Data
    what: str
    slices: int
    ways: dict[str, Seconds] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """For the report; ratios are of neighbouring repeats, so that what slows the machine slows both."""
        ours = next(iter(self.ways.values())).clock
        return [
            [
                f"{self.data.name}: {self.what}",
                way,
                median_of([1000 * second / self.slices for second in seconds.clock]),
                median_of([a / b for a, b in zip(seconds.clock, ours, strict=True)]),
            ]
            for way, seconds in self.ways.items()
        ]


def compare(data: Data, slices: int, repeats: int) -> list[Compared]:
    """Time all ways on the first slices, in turns, after one turn that does not count.

    Raises:
        RuntimeError: the ways differ in what they compute.
    """
    spec = models.get("unet2d", labels=data.labels)
    segmenter = Segmenter(spec, None, device=pick_device("auto"))
    batches = _inputs(segmenter, data, slices)
    count = sum(len(batch.data) for batch in batches)
    found = []
    for what, view in _GRADIENTS.items():
        ways: dict[str, Callable[[], Tensor]] = {
            "batched": lambda view=view: _looked(segmenter, batches, view),  # type: ignore[misc]
            "one at a time": lambda view=view: _plain(segmenter, batches, view, create_graph=False),  # type: ignore[misc]
            "one at a time, create_graph (USIM's code)": lambda view=view: _plain(  # type: ignore[misc]
                segmenter, batches, view, create_graph=True
            ),
        }
        found.append(_timed(Compared(data, what, count), ways, repeats))
    ways = {
        "prefix once": lambda: _passes(segmenter, batches, keep_prefix=True),
        "whole passes": lambda: _passes(segmenter, batches, keep_prefix=False),
    }
    found.append(_timed(Compared(data, f"{_PASSES.passes} dropout passes", count), ways, repeats))
    return found


def _inputs(segmenter: Segmenter, data: Data, slices: int) -> list[Inputs]:
    """Batches of a sweep, each within one volume, on the device."""
    found: list[Inputs] = []
    left = slices
    for file in data.files:
        volume = read_volume(file)
        prepared = prepare(segmenter.spec, volume.array, volume.spacing, _AXIS)
        for part in prepared.data[:left].to(segmenter.device).split(segmenter.batch):
            found.append(Inputs(prepared, part, file.name))
            left -= len(part)
        if left <= 0:
            break
    return found


def _timed(compared: Compared, ways: dict[str, Callable[[], Tensor]], repeats: int) -> Compared:
    first: Tensor | None = None
    compared.ways = {way: Seconds() for way in ways}
    description = f"signals, {compared.data.name}, {compared.what}"
    for turn in tqdm(range(repeats + 1), desc=description, unit="turn", leave=False, disable=None):
        for way, run in ways.items():
            if turn:
                compared.ways[way].take(run)
                continue
            result = run()
            first = result if first is None else first
            if not torch.allclose(result, first, rtol=1e-3, atol=1e-5 * float(first.abs().max())):
                raise RuntimeError(f"{compared.what}, {way}: not what {next(iter(ways))!r} gives.")
    return compared


def _looked(segmenter: Segmenter, batches: Sequence[Inputs], view: View) -> Tensor:
    return torch.cat([look(segmenter, batch, frozenset({view}))[view] for batch in batches])


def _plain(segmenter: Segmenter, batches: Sequence[Inputs], view: Gradients, *, create_graph: bool) -> Tensor:
    """torch.autograd.grad of each slice's score with respect to the layer's parameters."""
    spec, network = segmenter.spec, segmenter.network
    names = [spec.bottleneck_conv] if view.layer == "bottleneck" else list(spec.decoder_convs)
    layers: list[nn.Module] = [network.get_submodule(name) for name in names]
    tensors = [layer.weight for layer in layers] + ([layers[0].bias] if view.layer == "bottleneck" else [])
    found = []
    for batch in batches:
        for index in range(len(batch.data)):
            log_p = torch.log_softmax(batch.cut(network(batch.data[index : index + 1])), dim=1)
            score = log_p.gather(1, log_p.argmax(1, keepdim=True)).mean()
            slopes = torch.autograd.grad(score, tensors, create_graph=create_graph)
            found.append(torch.cat([slope.detach().flatten() for slope in slopes])[: view.keep])
    return torch.stack(found)


def _passes(segmenter: Segmenter, batches: Sequence[Inputs], *, keep_prefix: bool) -> Tensor:
    """The summed probabilities of all passes, so that only the passes are timed."""
    modules, found = dropout_modules(segmenter.spec, segmenter.network), list[Tensor]()
    with torch.random.fork_rng(), active_dropout(modules, _PASSES.rate):
        torch.manual_seed(0)
        for batch in batches:
            total = torch.zeros((), device=segmenter.device)

            def run(batch: Inputs = batch) -> Tensor:
                return probabilities(segmenter, segmenter.network, batch.data)

            def take(probs: Tensor) -> None:
                nonlocal total
                total = total + probs

            if keep_prefix:
                repeat(segmenter.network, modules, run, _PASSES.passes, take)
            else:
                with torch.inference_mode():
                    for _ in range(_PASSES.passes):
                        take(run())
            found.append(total.flatten())
    return torch.cat(found)


def report(found: Sequence[Compared]) -> str:
    """One row a way."""
    return table(
        "Signals: per-item gradients and MC dropout beside the plain ways (unet2d)",
        ["what", "way", "ms a slice", "ratio to the first"],
        [row for compared in found for row in compared.rows()],
    )
