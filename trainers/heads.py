"""Auxiliary heads, trained along with the network that they belong to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from loop.views import likeliest
from models import heads
from models.heads import DifficultyHead
from models.preprocess import IGNORED
from models.spec import ModelSpec
from models.weights import load_into
from trainers.losses import partial_dice_ce
from trainers.steps import weights_of

_MARGIN = 1.0
_ATTACHED_SHARE = 0.6
"""Of the epochs; afterwards the loss head's gradients no longer reach the network (Yoo & Kweon 2019, section 4.1)."""


_DIFFICULTY_RATE = 10
"""Times the network's learning rate: a handful of weights between probabilities and a sigmoid, which must grow large."""


class HeadsInTraining:
    """The heads of a network, and what each adds to its loss.

    Args:
        start: weights to begin with; a head that they do not hold begins from a seeded initialisation.

    Raises:
        NotFound: no such head. BadInput: the model cannot have it, or `start` is of another network.
    """

    def __init__(
        self,
        spec: ModelSpec,
        network: nn.Module,
        names: Sequence[str],
        seed: int,
        device: torch.device,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.modules = {name: heads.build(name, spec, seed).to(device) for name in sorted(set(names))}
        for name, weights in heads.of_heads(start or {}).items():
            if name in self.modules:
                load_into(self.modules[name], weights, f"{spec.name}, head {name}")
        self._layers = [name for name, _ in spec.loss_layers] if "learning_loss" in self.modules else []
        self._seen = dict[str, Tensor]()
        self._hooks = [network.get_submodule(layer).register_forward_hook(self._keeps(layer)) for layer in self._layers]

    def _keeps(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, out: self._seen.update({layer: out})

    def parameters(self, learning_rate: float) -> list[dict[str, Any]]:
        """A group for the optimiser of each head, with its peak learning rate."""
        return [
            {
                "params": list(module.parameters()),
                "lr": learning_rate * (_DIFFICULTY_RATE if isinstance(module, DifficultyHead) else 1),
            }
            for module in self.modules.values()
        ]

    def loss(self, logits: Tensor, target: Tensor, trained: float) -> Tensor:
        """What the heads add to the loss of the batch that the network has just seen.

        Args:
            logits: (B, C, *S). target: (B, *S), class or IGNORED.
            trained: share of the training that is over.
        """
        total = logits.new_zeros((), dtype=torch.float32)
        for name, module in self.modules.items():
            if isinstance(module, DifficultyHead):
                total = total + difficulty_loss(module, logits, target)
            else:
                total = total + self._learning_loss(name, logits, target, trained)
        return total

    def _learning_loss(self, name: str, logits: Tensor, target: Tensor, trained: float) -> Tensor:
        vectors = heads.pooled(self._seen[layer] for layer in self._layers)
        predicted = self.modules[name](vectors if trained < _ATTACHED_SHARE else vectors.detach()).float()
        rows = (target != IGNORED).flatten(1).any(1).nonzero()[:, 0]
        with torch.no_grad():
            true = [partial_dice_ce(logits[row : row + 1].float(), target[row : row + 1]) for row in rows.tolist()]
        return margin_ranking(predicted[rows], torch.stack(true) if true else predicted[:0])

    def weights(self) -> dict[str, Tensor]:
        """Under the names that they have in the network's file."""
        return {
            key: value for name, module in self.modules.items() for key, value in heads.named(name, weights_of(module)).items()
        }  # fmt: skip

    def close(self) -> None:
        """Stop watching the network."""
        for hook in self._hooks:
            hook.remove()


def margin_ranking(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean over pairs of max(0, 1 - sign(l_i - l_j) (p_i - p_j)); 0 without a pair (Yoo & Kweon 2019, eq. 2).

    An item's partner is the one as far from the batch's other end; of an odd number the middle one has none. sign(0) = -1.

    Args:
        predicted: (B,) losses. true: (B,) losses, constants.
    """
    pairs = len(predicted) // 2
    if not pairs:
        return predicted.sum() * 0
    apart, true_apart = ((values - values.flip(0))[:pairs] for values in (predicted, true.detach()))
    return functional.relu(_MARGIN - torch.where(true_apart > 0, 1.0, -1.0) * apart).mean()


def difficulty_loss(head: DifficultyHead, logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the difficulty against 1[yhat != y] where annotated, without a gradient to the network.

    The means over right and over wrong voxels are weighted with 1 / sqrt(count + 1), scaled to add up to 1: errors are
    rare, and would otherwise teach that nothing is difficult (DEAL, Xie et al. 2020, section 3.3, and its released code).
    """
    logits = logits.detach().float()
    valid = target != IGNORED
    wrong = (likeliest(logits)[1] != target)[valid]
    each = functional.binary_cross_entropy_with_logits(
        head.logits(logits.softmax(1))[:, 0][valid], wrong.float(), reduction="none"
    )
    counts = torch.stack([(~wrong).sum(), wrong.sum()])
    shares = (counts + 1).rsqrt() / (counts + 1).rsqrt().sum()
    sums = torch.stack([(each * ~wrong).sum(), (each * wrong).sum()])
    return (shares * sums / counts.clamp_min(1)).sum()
