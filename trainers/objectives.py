"""What a training descends: one loss of one network, or that of two branches for scribbles."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from loop.errors import BadInput
from models.preprocess import IGNORED
from models.second_decoder import SecondDecoder
from models.spec import ModelSpec
from trainers.losses import inverse_frequencies, partial_ce, partial_dice_ce, soft_dice_loss

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
    """A loss of the network's logits and nothing else."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, items: Tensor, logits: Tensor, target: Tensor, trained: float) -> Tensor:
        """The loss of a batch that the network has just seen.

        Args:
            items: (B, 1, *S). logits: (B, C, *S). target: (B, *S), class or IGNORED.
            trained: share of the steps that are over.
        """
        return self._loss(logits, target)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained besides the network."""
        return []

    def weights(self) -> dict[str, Tensor]:
        """Of what is trained besides the network, as they are called in its file."""
        return {}

    def close(self) -> None:
        """Stop watching the network."""


class DualBranch(OneBranch):
    """Two decoders behind one encoder, which teach each other where nobody drew (Luo et al. 2022).

    Args:
        loss: of each branch on the strokes; partial cross-entropy in the paper.
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
        *,
        seed: int,
        device: torch.device,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(loss)
        self._second = SecondDecoder(spec, network, seed + _SEED_APART).train()
        if start is not None:
            self._second.take(start)
        self._second.to(device)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, items: Tensor, logits: Tensor, target: Tensor, trained: float) -> Tensor:
        alpha = float(torch.rand((), generator=self._generator))
        weight = _PSEUDO_WEIGHT * min(1.0, trained / _WARM_UP)
        return dual_branch_loss(logits, self._second(items), target, alpha, self._loss, weight)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._second.parameters())

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._second.named_weights()
        return found

    def close(self) -> None:
        self._second.close()


def dual_branch_loss(
    first: Tensor, second: Tensor, target: Tensor, alpha: float, loss: Loss = partial_ce, weight: float = _PSEUDO_WEIGHT
) -> Tensor:
    """(loss(first) + loss(second)) / 2 on the strokes, plus `weight` times the mean Dice loss of both to their pseudo label.

    The pseudo label of every voxel is argmax(alpha softmax(first) + (1 - alpha) softmax(second)), without a gradient
    (Luo et al. 2022, eq. 1 to 4). Dice is that of `trainers.losses`: over the foreground classes in the pseudo label.

    Args:
        first, second: (B, C, *S) logits. target: (B, *S), class or IGNORED.
        alpha: in [0, 1], drawn anew for each step.
    """
    strokes = (loss(first, target) + loss(second, target)) / 2
    with torch.no_grad():
        mixed = alpha * first.float().softmax(1) + (1 - alpha) * second.float().softmax(1)
        pseudo = mixed.argmax(1)
        everywhere = torch.ones_like(pseudo, dtype=torch.bool)
    taught = (soft_dice_loss(first, pseudo, everywhere) + soft_dice_loss(second, pseudo, everywhere)) / 2
    return strokes + weight * taught
