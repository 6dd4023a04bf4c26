"""How good a mask is."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.preprocess import IGNORED


def dice_counts(prediction: Tensor, target: Tensor, n_classes: int) -> npt.NDArray[np.float64]:
    """(n_classes - 1, 3) voxel counts of each foreground class: overlap, predicted, true; IGNORED targets do not count."""
    valid = target != IGNORED
    predicted, true = prediction[valid], target[valid]
    return np.array(
        [
            [int(((predicted == k) & (true == k)).sum()), int((predicted == k).sum()), int((true == k).sum())]
            for k in range(1, n_classes)
        ],
        float,
    ).reshape(n_classes - 1, 3)


def dice(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n_classes - 1,) Dice in [0, 1], higher is better; NaN for a class that is neither predicted nor there."""
    overlap, predicted, true = counts.T
    with np.errstate(invalid="ignore"):
        scores: npt.NDArray[np.float64] = 2 * overlap / (predicted + true)
    return scores


def mean_dice(per_volume: npt.NDArray[np.float64]) -> tuple[float | None, list[float | None]]:
    """Mean over classes, and each class's mean over the volumes that have it, of (V, classes) Dice; None where there is none."""
    scores = [float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else None for column in per_volume.T]
    known = [score for score in scores if score is not None]
    return (float(np.mean(known)) if known else None), scores
