"""Losses that see annotated voxels only."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from models.preprocess import IGNORED

Outputs: TypeAlias = Tensor | Sequence[Tensor]
"""Of a network in training: logits (B, C, *S), or a list of them first and further (B, C, *S'), S' = S or smaller."""


def partial_dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice loss over the voxels whose target is not IGNORED.

    Dice is pooled over the batch and averaged over the foreground classes that the batch's targets contain: a class
    that nobody annotated here says nothing about Dice, and cross-entropy already keeps it down.

    Args:
        logits: (B, C, *S). target: (B, *S) integer, class or IGNORED.
    """
    target = target.long()
    return partial_ce(logits, target) + soft_dice_loss(logits, target, target != IGNORED)


def partial_ce(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, the mean over the voxels whose target is not IGNORED; 0 where there is none.

    Args:
        logits: (B, C, *S). target: (B, *S) integer, class or IGNORED.
        weights: (C,) of the classes; the mean is then over the voxels' weights, as in `torch.nn.functional.cross_entropy`.
    """
    target = target.long()
    each = functional.cross_entropy(logits, target, weights, ignore_index=IGNORED, reduction="sum")
    valid = target != IGNORED
    if weights is None:
        return each / valid.sum().clamp_min(1)
    return each / (weights[torch.where(valid, target, 0)] * valid).sum().clamp_min(1e-6)


def inverse_frequencies(voxels: Tensor) -> Tensor:
    """(C,) weights 1 / annotated voxels of each class, of mean 1 over the classes that have any; 0 for the others.

    Args:
        voxels: (C,) annotated voxels of each class, background first.
    """
    present = voxels > 0
    weights = torch.where(present, 1 / voxels.double().clamp_min(1), 0)
    return (weights * present.sum() / weights.sum().clamp_min(1e-30)).float()


def soft_dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - mean soft Dice of the foreground classes present in the valid target; 0 if there are none."""
    n_classes = logits.shape[1]
    probs = torch.softmax(logits.float(), 1) * valid[:, None]
    truth = functional.one_hot(torch.where(valid, target, 0), n_classes).movedim(-1, 1) * valid[:, None]
    axes = (0, *range(2, logits.ndim))
    overlap, size = (probs * truth).sum(axes)[1:], (probs + truth).sum(axes)[1:]
    present = truth.sum(axes)[1:] > 0
    # Without asking whether any is present: on a GPU the answer would have to be waited for.
    n_present = present.sum()
    scores = torch.where(present, 2 * overlap / size.clamp_min(1e-6), 0)
    return (n_present - scores.sum()) / n_present.clamp_min(1)


def logits_of(outputs: Outputs) -> Tensor:
    """Those at full resolution."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def deeply_supervised(
    outputs: Outputs,
    target: Tensor,
    weights: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor] = partial_dice_ce,
) -> Tensor:
    """The loss of all that a network returned in training.

    An output of lower resolution is compared with the target at its own, by the nearest voxel, as in nnU-Net.

    Args:
        target: (B, *S), class or IGNORED.
        weights: one for each of a list; an output whose weight is 0 is not looked at.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, target)
    parts = [
        weight * loss(output, _at_size(target, output.shape[2:]))
        for output, weight in zip(outputs, weights, strict=True)
        if weight
    ]
    return torch.stack(parts).sum()


def _at_size(target: Tensor, size: torch.Size) -> Tensor:
    if target.shape[1:] == size:
        return target
    return functional.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(target.dtype)
