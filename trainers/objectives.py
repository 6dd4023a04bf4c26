"""What a training descends: one loss of one network, or that of two branches for scribbles."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loop.errors import BadInput
from models.preprocess import IGNORED
from models.second_decoder import SecondDecoder
from models.spec import ModelSpec
from trainers.losses import (
    Outputs,
    deeply_supervised,
    inverse_frequencies,
    logits_of,
    partial_ce,
    partial_dice_ce,
    soft_dice_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = ("dice_ce", "ce", "weighted_ce")
METHODS = ("dual_branch", "partial_ce")

_PSEUDO_WEIGHT = 0.5
"""Of the pseudo labels' loss (Luo et al. 2022, eq. 4)."""
_WARM_UP = 0.5
"""Share of the steps over which that weight grows from 0: a short training's first pseudo labels teach nothing true."""
_SEED_APART = 7_368_787
"""Between the seeds of the decoders, which must begin apart to have two opinions."""


def loss_named(name: str, targets: Iterable[Tensor], n_classes: int) -> Loss:
    """The loss of that name: (logits (B, C, *S), target (B, *S)) -> a number; only annotated voxels count.

    Args:
        name: "dice_ce"; "ce"; or "weighted_ce", cross-entropy weighted with the classes' inverse frequencies.
        targets: all that the training will see; the frequencies are those of their annotated voxels.

    Raises:
        BadInput: no such loss.
    """
    if name == "weighted_ce":
        counts = sum((_counted(target, n_classes) for target in targets), torch.zeros(n_classes, dtype=torch.int64))
        weights = inverse_frequencies(counts)
        return lambda logits, target: partial_ce(logits, target, weights.to(logits))
    plain: dict[str, Loss] = {"dice_ce": partial_dice_ce, "ce": partial_ce}
    if name not in plain:
        raise BadInput(f"loss must be one of {', '.join(LOSSES)}, got {name!r}.")
    return plain[name]


def _counted(target: Tensor, n_classes: int) -> Tensor:
    return torch.bincount(target[target != IGNORED].long(), minlength=n_classes)


class OneBranch:
    """A loss of what the network puts out and nothing else.

    Args:
        output_weights: of the loss of each output, where the network returns several in training.
        gathered: (B, ...) of this process -> that of all processes that train together.
    """

    def __init__(self, loss: Loss, output_weights: Sequence[float], gathered: Callable[[Tensor], Tensor]) -> None:
        # On all processes' items, as one process alone would; its gradient is the mean over processes.
        self._loss: Loss = lambda logits, target: loss(gathered(logits), gathered(target))
        self._output_weights, self._gathered = output_weights, gathered

    def __call__(self, items: Tensor, outputs: Outputs, target: Tensor, trained: float) -> Tensor:
        """The loss of a batch that the network has just seen.

        Args:
            items: (B, 1, *S). outputs: of the network. target: (B, *S), class or IGNORED.
            trained: share of the training that is over.
        """
        return self._supervised(outputs, target)

    def _supervised(self, outputs: Outputs, target: Tensor) -> Tensor:
        return deeply_supervised(outputs, target, self._output_weights, self._loss)

    @property
    def leaves_out(self) -> bool:
        """Whether an output has no weight, so that layers of the network get no gradient."""
        return 0 in self._output_weights

    def modules(self) -> list[nn.Module]:
        """What is trained besides the network."""
        return []

    def weights(self) -> dict[str, Tensor]:
        """Of what is trained besides the network, as they are called in its file."""
        return {}

    def close(self) -> None:
        """Stop watching the network."""


class DualBranch(OneBranch):
    """Two decoders behind one encoder, which teach each other where nobody drew (Luo et al. 2022, eq. 4).

    Args:
        loss: of each branch on the strokes; partial cross-entropy in the paper.
        gathered: as for one branch.
        seed: of the second decoder and of alpha.
        start: weights to begin with, of a file with or without a second decoder.

    Raises:
        BadInput: the model cannot be split into encoder and decoder.
    """

    def __init__(
        self,
        loss: Loss,
        spec: ModelSpec,
        network: nn.Module,
        gathered: Callable[[Tensor], Tensor],
        *,
        seed: int,
        device: torch.device,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(loss, spec.output_weights, gathered)
        self._second = SecondDecoder(spec, network, seed + _SEED_APART).train()
        if start is not None:
            self._second.take(start)
        self._second.to(device)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, items: Tensor, outputs: Outputs, target: Tensor, trained: float) -> Tensor:
        alpha = float(torch.rand((), generator=self._generator))
        weight = _PSEUDO_WEIGHT * min(1.0, trained / _WARM_UP)
        second: Outputs = self._second(items)
        return dual_branch_loss(outputs, second, target, alpha, self._supervised, weight, self._gathered)

    def modules(self) -> list[nn.Module]:
        return [self._second]

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._second.named_weights()
        return found

    def close(self) -> None:
        self._second.close()


def dual_branch_loss(
    first: Outputs,
    second: Outputs,
    target: Tensor,
    alpha: float,
    loss: Callable[[Any, Tensor], Tensor] = partial_ce,
    weight: float = _PSEUDO_WEIGHT,
    gathered: Callable[[Tensor], Tensor] = lambda part: part,
) -> Tensor:
    """(loss(first) + loss(second)) / 2 on the strokes, plus `weight` times the mean Dice loss of both to their pseudo label.

    The pseudo label of every voxel is argmax(alpha softmax(first) + (1 - alpha) softmax(second)), without a gradient
    (Luo et al. 2022, eq. 1 to 4). Dice is that of `trainers.losses`: over the foreground classes in the pseudo label.

    Args:
        first, second: what the branches put out. target: (B, *S), class or IGNORED.
        alpha: in [0, 1], drawn anew for each step.
        gathered: of this process's logits, those of all processes.
    """
    strokes = (loss(first, target) + loss(second, target)) / 2
    one, other = (gathered(logits_of(branch)) for branch in (first, second))
    with torch.no_grad():
        mixed = alpha * one.float().softmax(1) + (1 - alpha) * other.float().softmax(1)
        pseudo = mixed.argmax(1)
        everywhere = torch.ones_like(pseudo, dtype=torch.bool)
    taught = (soft_dice_loss(one, pseudo, everywhere) + soft_dice_loss(other, pseudo, everywhere)) / 2
    return strokes + weight * taught
