"""How far a mask's surface is from the true one, in mm."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import KDTree

from trainers.metrics import FloatArray, dice, dice_counts

_PERCENT = 95


def surface_distances(
    prediction: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], n_classes: int, spacing: Sequence[float]
) -> FloatArray:
    """(n_classes - 1, 2) HD95 and mean surface distance of each foreground class, in mm, lower is better.

    A surface is the voxels of a mask with a neighbour, by a face, outside of it. HD95 is the larger of the two directions'
    95th percentiles of distances from one surface to the other, the mean that of both directions' distances together.
    A class that is in neither mask is NaN, and left out of means; one that is in only one of them is as far off as can be:
    the image's diagonal, so that a structure that is missed counts.

    Args:
        prediction, truth: (*S) in 2 or 3 dimensions, class of each voxel. spacing: mm along each axis.
    """
    return np.array([_of(prediction == k, truth == k, spacing) for k in range(1, n_classes)], float).reshape(-1, 2)


def measures(
    prediction: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], n_classes: int, spacing: Sequence[float]
) -> FloatArray:
    """(n_classes - 1, 3) Dice, HD95 and mean surface distance in mm of each foreground class of a mask.

    Voxels whose truth is IGNORED do not count for Dice, and are background for the distances.
    """
    overlap = dice(dice_counts(torch.from_numpy(prediction), torch.from_numpy(truth), n_classes))
    return np.column_stack([overlap, surface_distances(prediction, truth, n_classes, spacing)])


def _of(
    prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float]:
    there = prediction.any(), truth.any()
    if not any(there):
        return np.nan, np.nan
    if not all(there):
        diagonal = float(np.linalg.norm(np.array(truth.shape) * np.array(spacing)))
        return diagonal, diagonal
    # Nothing outside the box around both has a part in it.
    (box,) = ndimage.find_objects((prediction | truth).astype(np.uint8))
    surfaces = [
        np.argwhere(mask[box] & ~ndimage.binary_erosion(mask[box])) * np.array(spacing) for mask in (prediction, truth)
    ]
    # Splitting at the middle, not at the median, is quicker for points of a grid; the distances are the same.
    there_and_back = [KDTree(other, balanced_tree=False).query(one)[0] for one, other in (surfaces, surfaces[::-1])]
    hausdorff = max(float(np.percentile(distances, _PERCENT)) for distances in there_and_back)
    return hausdorff, float(np.concatenate(there_and_back).mean())
