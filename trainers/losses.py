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
    valid = target != IGNORED
    cross_entropy = functional.cross_entropy(
        logits, target, ignore_index=IGNORED, reduction="sum"
    ) / valid.sum().clamp_min(1)
    return cross_entropy + soft_dice_loss(logits, target, valid)


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
