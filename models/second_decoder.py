"""A second decoder behind the encoder of any network that names its bottleneck, for training with two branches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from loop.errors import BadInput
from models.heads import named
from models.spec import ModelSpec

NAME = "second_decoder"
"""Under "heads.second_decoder." its weights stand in the network's file; prediction leaves them aside."""

_DROPOUT = 0.5
"""Of the features on their way into the second decoder (Luo et al. 2022, section 2.1)."""


class SecondDecoder(nn.Module):
    """Everything that a network does behind its bottleneck, once more, with weights of its own.

    The encoder is found by running the network once: the modules that are done when `spec.feature_layer` is. In a second
    network of the same kind they give way to what the first network's modules have just put out, after dropout; so the
    encoder is shared, runs once a step, and learns from both branches.

    Args:
        network: the main network; watched until `close`.
        seed: of the initialisation; the decoders must differ, so it is not the network's.

    Raises:
        BadInput: the network cannot be split there: it has no such module, or uses a module of its encoder twice.
    """

    def __init__(self, spec: ModelSpec, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.decoder = spec.network(seed)
        self._seen: dict[str, Any] = {}
        encoder = encoder_modules(spec, self.decoder)
        twins = {self.decoder.get_submodule(name): _Recalled(name, self._seen) for name in encoder}
        for parent in list(self.decoder.modules()):
            for key, child in list(parent.named_children()):
                if child in twins:
                    setattr(parent, key, twins[child])
        self._hooks = [network.get_submodule(name).register_forward_hook(self._keeps(name)) for name in encoder]

    def _keeps(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, out: self._seen.update({name: out})

    def forward(self, data: Tensor) -> Any:
        """(B, 1, *S), of which the main network has just seen the same -> what such a network puts out."""
        outputs = self.decoder(data)
        self._seen.clear()
        return outputs

    def named_weights(self) -> dict[str, Tensor]:
        """Copies on the CPU, under the names that they have in the network's file."""
        return named(NAME, {key: value.detach().cpu().clone() for key, value in self.decoder.state_dict().items()})

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with weights of a file: the second decoder's, or the main one's where the file has no second."""
        begin = f"heads.{NAME}."
        own = self.decoder.state_dict().keys()
        main = {key: value for key, value in weights.items() if key in own}
        second = {key.removeprefix(begin): value for key, value in weights.items() if key.startswith(begin)}
        self.decoder.load_state_dict(second or main)

    def close(self) -> None:
        """Stop watching the network."""
        for hook in self._hooks:
            hook.remove()


class _Recalled(nn.Module):
    """Stands for a module of the encoder: puts out, after dropout, what the main network's has put out.

    Args:
        seen: {name: output}, filled while the main network runs.
    """

    def __init__(self, name: str, seen: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.seen = name, seen

    def forward(self, *ignored: Any) -> Any:
        return _dropped(self.seen[self.name], training=self.training)


def _dropped(features: Any, *, training: bool) -> Any:
    """Dropout of a tensor, or of each in a list."""
    if isinstance(features, list | tuple):
        return type(features)(_dropped(each, training=training) for each in features)
    return functional.dropout(features, _DROPOUT, training)


def encoder_modules(spec: ModelSpec, network: nn.Module) -> list[str]:
    """The names of the largest modules whose work is done when the bottleneck's is, in the order of the forward pass.

    Raises:
        BadInput: the network has no module `spec.feature_layer`, or one of the found runs again later.
    """
    names = dict(network.named_modules())
    if spec.feature_layer not in names:
        raise BadInput(
            f"scribble_method dual_branch needs a model that names its bottleneck, and {spec.name!r} does not: "
            "choose another model, or --conf scribble_method partial_ce."
        )
    order = _order_of_work(spec, network, names)
    end = order.index(spec.feature_layer) + 1
    done = set(order[:end])
    found = [name for name in order[:end] if not any(name.startswith(f"{above}.") for above in done)]
    # A layer without weights, such as a pooling that all levels use, may run on: what follows it is recalled anyhow.
    weighty = {name for name, module in names.items() if next(module.parameters(), None) is not None}
    found = [name for name in found if name in weighty or order.count(name) == 1]
    again = sorted(set(found) & set(order[end:])) or sorted({name for name in found if order[:end].count(name) > 1})
    if again:
        raise BadInput(
            f"scribble_method dual_branch cannot split {spec.name!r}: its part {again[0]!r} runs more than once. "
            "Choose another model, or --conf scribble_method partial_ce."
        )
    return found


def _order_of_work(spec: ModelSpec, network: nn.Module, names: Mapping[str, nn.Module]) -> list[str]:
    """Names of the modules in the order in which they finish, of one small input."""
    order: list[str] = []

    def notes(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, out: order.append(name)

    hooks = [module.register_forward_hook(notes(name)) for name, module in names.items() if name]
    mode = network.training
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 1, *(2 * size for size in spec.divisors)))
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return order
