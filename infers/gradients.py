"""Per-item gradients with respect to a few convolutions' weights, from one forward and one backward pass a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from loop.errors import BadInput
from loop.views import Gradients
from models.spec import ModelSpec

_NUMBERS_AT_ONCE = 2**25
"""Of one convolution, slopes are spread and gradients made for as many items as this bound holds, but for one."""


@dataclass(frozen=True)
class _Part:
    """A weight or a bias and where it stands in the flattened gradient."""

    conv: Any
    is_bias: bool
    start: int
    stop: int


@dataclass
class _Call:
    """One run of a convolution: its input, and the output that the score is differentiated by."""

    conv: Any
    input: Tensor
    version: int
    output: Tensor


def item_gradients(
    spec: ModelSpec, network: nn.Module, data: Tensor, scores: Callable[[Tensor], Sequence[Tensor]], view: Gradients
) -> Tensor:
    """Gradients of scores, each of which must depend on one input only.

    Args:
        network: in prediction mode, so that no input's output depends on another's.
        data: (n, 1, *S).
        scores: logits (n, C, *S) -> q tensors (n,), one backward pass each.

    Returns:
        (q * n, D) float32, the n of the first score first.

    Raises:
        BadInput: the model does not say which convolutions are meant, or has one that is not differentiated here.
        ValueError: an index is out of range.
    """
    parts = _parts(spec, network, view.layer)
    convs = list(dict.fromkeys(part.conv for part in parts))
    with torch.inference_mode(False), torch.enable_grad(), _frozen(network), _calls(convs) as calls:
        values = scores(network(data))
        found = []
        for number, value in enumerate(values):
            outputs = [call.output for call in calls]
            slopes = torch.autograd.grad(value.sum(), outputs, retain_graph=number + 1 < len(values))
            with torch.no_grad():
                found.append(_picked(parts, calls, slopes, view))
    return torch.cat(found)


def _parts(spec: ModelSpec, network: nn.Module, layer: str) -> list[_Part]:
    bottleneck = layer == "bottleneck"
    names = [name for name in ((spec.bottleneck_conv,) if bottleneck else spec.decoder_convs) if name]
    if not names:
        raise BadInput(f"The model {spec.name!r} does not say which convolutions its {layer} has.")
    parts: list[_Part] = []
    at = 0
    for name in names:
        conv: Any = network.get_submodule(name)
        plain = isinstance(conv, nn.Conv2d | nn.Conv3d) and conv.groups == 1 and conv.padding_mode == "zeros"
        if not plain or isinstance(conv.padding, str):
            raise BadInput(f"{name} of the model {spec.name!r} must be a plain convolution, with padding in numbers.")
        for tensor in (conv.weight, conv.bias) if bottleneck else (conv.weight,):
            if tensor is not None:
                parts.append(_Part(conv, tensor is conv.bias, at, at + tensor.numel()))
                at += tensor.numel()
    return parts


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No parameter is differentiated by: the backward pass ends at the first convolution that is looked at."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextmanager
def _calls(convs: Sequence[nn.Module]) -> Iterator[list[_Call]]:
    """What goes into and out of the convolutions while the context lasts."""
    found: list[_Call] = []

    def look(conv: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.requires_grad_()
        found.append(_Call(conv, args[0].detach(), args[0]._version, output))
        # A copy goes on, because an activation in place would otherwise become what is differentiated by.
        return output.clone()

    with ExitStack() as hooks:
        for conv in convs:
            hooks.enter_context(conv.register_forward_hook(look))
        yield found


def _picked(parts: Sequence[_Part], calls: Sequence[_Call], slopes: Sequence[Tensor], view: Gradients) -> Tensor:
    """(n, D) of what the view keeps of the flattened gradient."""
    n, total = len(slopes[0]), parts[-1].stop
    kept = None if view.indices is None else torch.tensor(view.indices, device=slopes[0].device)
    if kept is not None and not 0 <= int(kept.min()) <= int(kept.max()) < total:
        raise ValueError(
            f"Gradients has {total} entries here, but the index {int(kept.max())} or below 0 is asked for."
        )
    width = min(view.keep or total, total) if kept is None else len(kept)
    found = slopes[0].new_zeros(n, width)
    for part in parts:
        columns: Tensor | slice
        wanted: Tensor | slice
        if kept is None:
            columns, wanted = slice(part.start, min(part.stop, width)), slice(0, min(part.stop, width) - part.start)
            last = wanted.stop - 1
        else:
            columns = ((kept >= part.start) & (kept < part.stop)).nonzero()[:, 0]
            wanted = kept[columns] - part.start
            last = int(wanted.max()) if len(wanted) else -1
        if last < 0:
            continue
        for call, slope in zip(calls, slopes, strict=True):
            if call.conv is not part.conv:
                continue
            if call.input._version != call.version:
                raise RuntimeError("A convolution's input was changed in place: its weights' gradient is lost.")
            each = part.conv.weight[0].numel()
            filters = last + 1 if part.is_bias else last // each + 1
            inputs, points = call.input[0, 0].numel(), part.conv.weight[0, 0].numel()
            size = max(1, _NUMBERS_AT_ONCE // (filters * points * max(inputs, part.conv.in_channels)))
            for start in range(0, n, size):
                items = slice(start, start + size)
                dy = slope[items, :filters]
                flat = dy.flatten(2).sum(2) if part.is_bias else weight_gradients(part.conv, call.input[items], dy)
                found[items, columns] += flat[:, wanted]
    return found


def weight_gradients(conv: Any, data: Tensor, slope: Tensor) -> Tensor:
    """(n, filters * c * prod(k)): each item's gradient of the first filters' weights.

    Args:
        conv: a plain convolution, 2-D or 3-D.
        data: (n, c, *S) what went in.
        slope: (n, filters, *S') the score's gradient with respect to what came out.
    """
    n, filters = slope.shape[:2]
    # Not the input but the slope is spread over the kernel's points: it has fewer channels, the fewer the less is kept.
    points = list(product(*map(range, conv.kernel_size)))
    spread = slope.new_zeros(n, filters, len(points), *data.shape[2:])
    for number, at in enumerate(points):
        reach = list(map(_reach, at, conv.dilation, conv.stride, conv.padding, data.shape[2:], slope.shape[2:]))
        spread[(slice(None), slice(None), number, *(inside for inside, _ in reach))] = slope[
            (..., *(outside for _, outside in reach))
        ]
    found = torch.bmm(spread.flatten(3).flatten(1, 2), data.flatten(2).transpose(1, 2))
    return found.unflatten(1, (filters, len(points))).transpose(2, 3).flatten(1)


def _reach(at: int, dilation: int, stride: int, padding: int, size: int, outputs: int) -> tuple[slice, slice]:
    """Along one axis, the inputs that the kernel's point `at` meets, without the padding, and the outputs it meets them for."""
    shift = at * dilation - padding
    first, last = max(0, -(shift // stride)), min(outputs - 1, (size - 1 - shift) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(first * stride + shift, last * stride + shift + 1, stride), slice(first, last + 1)
