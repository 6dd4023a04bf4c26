"""Monte Carlo dropout: many passes with dropout on, of which the part before the first dropout runs once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from loop.errors import BadInput
from loop.views import Passes, entropy_map
from models.spec import ModelSpec


def dropout_modules(spec: ModelSpec, network: nn.Module) -> list[_DropoutNd]:
    """The dropout modules that the spec declares, or all there are.

    Raises:
        BadInput: the network has none.
    """
    named = [network.get_submodule(name) for name in spec.dropout_layers] or list(network.modules())
    found = [module for module in named if isinstance(module, _DropoutNd)]
    if not found:
        raise BadInput(f"The model {spec.name!r} has no dropout layer, so MC dropout cannot be asked of it.")
    return found


@contextmanager
def active_dropout(modules: Sequence[_DropoutNd], rate: float) -> Iterator[None]:
    """Dropout at `rate` in these modules and in no other; their modes and rates come back whatever happens."""
    before = [(module, module.training, module.p) for module in modules]
    try:
        for module in modules:
            module.train()
            module.p = rate
        yield
    finally:
        for module, training, p in before:
            module.train(training)
            module.p = p


def repeat(
    network: nn.Module,
    stops: Sequence[nn.Module],
    run: Callable[[], Tensor],
    count: int,
    take: Callable[[Tensor], None],
) -> None:
    """take(run()) `count` times, with the same results as that, if only `stops` make one run differ from another.

    The modules of `network` that finish before the first of `stops` starts run once: their outputs are kept and given out
    again. A module that runs twice in a pass, or whose output something changes in place later, is run again instead.
    """
    with torch.no_grad():  # not inference mode, whose tensors do not tell that they were changed in place
        recorder = _Recorder(network, stops)
        with recorder.recording():
            take(run())
        with _replaced(recorder.prefix()):
            for _ in range(count - 1):
                take(run())


class _Recorder:
    """Outputs of the largest modules that finish before the first of `stops` starts."""

    def __init__(self, network: nn.Module, stops: Sequence[nn.Module]) -> None:
        self._network, self._stops, self._stopped = network, stops, False
        self._calls = Counter[nn.Module]()
        self._finished: dict[str, tuple[nn.Module, Any, list[int]]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in self._network.named_modules():
                hooks.enter_context(module.register_forward_hook(partial(self._finish, name)))
            for module in self._stops:
                hooks.enter_context(module.register_forward_pre_hook(self._stop))
            yield

    def _stop(self, module: nn.Module, args: Any) -> None:
        self._stopped = True

    def _finish(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._calls[module] += 1
        if not self._stopped and (tensors := _tensors(output)) is not None:
            inner = f"{name}." if name else ""
            self._finished = {key: value for key, value in self._finished.items() if not key.startswith(inner)}
            self._finished[name] = (module, output, [tensor._version for tensor in tensors])

    def prefix(self) -> list[tuple[nn.Module, Any]]:
        """(module, its output) of all that another pass need not run."""
        return [
            (module, output)
            for module, output, versions in self._finished.values()
            if self._calls[module] == 1 and [tensor._version for tensor in _tensors(output) or ()] == versions
        ]


def _tensors(output: Any) -> list[Tensor] | None:
    """The tensors of a module's output; None if it is of a form that is not known to be safe to give out twice."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple | list) and all(isinstance(part, Tensor) for part in output):
        return list(output)
    return None


@contextmanager
def _replaced(prefix: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """The modules' forward gives the outputs out again."""
    own = [(module, module.__dict__.get("forward")) for module, _ in prefix]
    try:
        for module, output in prefix:
            module.__dict__["forward"] = partial(_again, output)
        yield
    finally:
        for module, forward in own:
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _again(output: Any, *args: Any, **kwargs: Any) -> Any:
    # A list's receiver may append to it or empty it.
    return list(output) if isinstance(output, list) else output


class PassStream:
    """Mean, variance and expected entropy of probabilities that come one pass at a time, in the memory of a few."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, probs: Tensor) -> None:
        """Take in one pass (B, C, *S)."""
        self._count += 1
        if self._count == 1:
            self._mean, self._squares, self._entropy = probs.clone(), torch.zeros_like(probs), entropy_map(probs)
            return
        # Welford's update in a form whose every summand is a square, so that no variance is below zero.
        delta = probs - self._mean
        self._mean.add_(delta, alpha=1 / self._count)
        self._squares.addcmul_(delta, delta, value=1 - 1 / self._count)
        self._entropy.add_(entropy_map(probs))

    def passes(self) -> Passes:
        """Of what came so far; the stream is used up."""
        return Passes(self._mean, self._squares.div_(self._count), self._entropy.div_(self._count))
