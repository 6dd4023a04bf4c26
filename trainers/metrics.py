"""How good a mask is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.preprocess import IGNORED

FloatArray = npt.NDArray[np.float64]

_DRAWS = 1000


def dice_counts(prediction: Tensor, target: Tensor, n_classes: int) -> npt.NDArray[np.float64]:
    """(n_classes - 1, 3) voxel counts of each foreground class: overlap, predicted, true; IGNORED targets do not count."""
    (counts,) = dice_counts_of_each(prediction[None], target[None], n_classes)
    found: npt.NDArray[np.float64] = counts
    return found


def dice_counts_of_each(prediction: Tensor, target: Tensor, n_classes: int) -> npt.NDArray[np.float64]:
    """(N, n_classes - 1, 3) as `dice_counts`, of each of the items (N, *S)."""
    # What is no class of ours is counted together as one more; targets that do not count have a row to be dropped.
    side, items = n_classes + 1, len(target)
    true = target.int().clamp_max(n_classes).masked_fill_(target == IGNORED, side)
    joint = true.mul_(side).add_(prediction.int().clamp_max(n_classes)).reshape(items, -1)
    joint += torch.arange(items, device=joint.device, dtype=joint.dtype)[:, None] * (side * (side + 1))
    table = torch.bincount(joint.flatten(), minlength=items * side * (side + 1)).cpu().numpy()
    counts = table.reshape(items, side + 1, side)[:, :side]
    sums = [counts.diagonal(axis1=1, axis2=2), counts.sum(1), counts.sum(2)]
    return np.stack(sums, 2)[:, 1:n_classes].astype(float)


def dice(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(..., n_classes - 1) Dice in [0, 1] of counts (..., n_classes - 1, 3), higher is better; NaN for a class that is neither
    predicted nor there."""
    overlap, predicted, true = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        scores: npt.NDArray[np.float64] = 2 * overlap / (predicted + true)
    return scores


def mean_dice(per_volume: npt.NDArray[np.float64]) -> tuple[float | None, list[float | None]]:
    """Mean over classes, and each class's mean over the volumes that have it, of (V, classes) Dice; None where there is none."""
    scores = [float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else None for column in per_volume.T]
    known = [score for score in scores if score is not None]
    return (float(np.mean(known)) if known else None), scores


def mean_with_error(per_volume: FloatArray, rng: np.random.Generator) -> tuple[float | None, float | None]:
    """Mean over the volumes, or of `mean_dice` over (V, classes), and its bootstrap standard error over volumes.

    The error is the standard deviation of the mean over 1000 draws of as many volumes with replacement (Efron 1979); None
    for fewer than two volumes. NaN values are left out of every mean.

    Args:
        per_volume: (V,) or (V, classes).
    """
    rows = per_volume[:, None] if per_volume.ndim == 1 else per_volume
    rows = rows[~np.isnan(rows).all(axis=1)]
    if not len(rows):
        return None, None
    if len(rows) == 1:
        return float(np.nanmean(rows)), None
    drawn = rows[rng.integers(len(rows), size=(_DRAWS, len(rows)))]
    return float(_means(rows[None])[0]), float(_means(drawn).std(ddof=1))


def _means(draws: FloatArray) -> FloatArray:
    """(D, V, classes) -> (D,) mean over classes of the mean over the volumes that have it."""
    known = ~np.isnan(draws)
    counts = known.sum(axis=1)
    per_class = np.where(known, draws, 0).sum(axis=1) / np.maximum(counts, 1)
    found: FloatArray = np.where(counts > 0, per_class, 0).sum(axis=1) / (counts > 0).sum(axis=1)
    return found


def measured(scores: Mapping[str, FloatArray], classes: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """{class: {measure: mean, measure_se: standard error}} of {measure: (V, classes)}; None where nothing is known."""
    found: dict[str, Any] = {}
    for number, name in enumerate(classes):
        means = {key: mean_with_error(values[:, number], rng) for key, values in scores.items()}
        found[name] = {key: mean for key, (mean, _) in means.items()}
        found[name] |= {f"{key}_se": error for key, (_, error) in means.items()}
    return found
