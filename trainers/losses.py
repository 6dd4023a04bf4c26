"""Losses that see annotated voxels only."""

import torch
from torch import Tensor
from torch.nn import functional

from models.preprocess import IGNORED


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
    if not present.any():
        return logits.new_zeros(())
    return 1 - (2 * overlap[present] / size[present].clamp_min(1e-6)).mean()
