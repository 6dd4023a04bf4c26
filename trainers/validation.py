"""How good a network is on what nobody trained with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loop.views import likeliest
from models.preprocess import IGNORED
from models.spec import ModelSpec
from models.windows import logits
from trainers.data import Loaded
from trainers.metrics import FloatArray, dice, dice_counts, mean_dice, mean_with_error, measured
from trainers.precision import Precision
from trainers.surface import surface_distances

_BATCH = 32


def validate(
    spec: ModelSpec, network: nn.Module, validation: Sequence[Loaded], precision: Precision
) -> tuple[float | None, list[float | None]]:
    """Mean Dice and Dice per class over the annotated slices of the validation cases."""
    if not validation:
        return None, [None] * len(spec.labels)
    scores = [
        dice(dice_counts(_predicted(spec, network, loaded, precision), loaded.target, spec.channels_out))
        for loaded in validation
    ]
    return mean_dice(np.array(scores))


def measure(
    spec: ModelSpec,
    network: nn.Module,
    validation: Sequence[Loaded],
    precision: Precision,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What a model's card says of the validation cases, with bootstrap standard errors over them; {} without any.

    Returns:
        volumes: how many cases. dice_se: of the mean Dice. distances_in: 3 where surface distances are of volumes, those that
        are annotated whole; 2 where there are none, and they are of annotated slices, averaged over each volume.
        distance_volumes: how many cases those are. classes: {name: dice, hd95_mm, msd_mm, and each with _se}.
    """
    if not validation:
        return {}
    whole = any(loaded.whole for loaded in validation)
    n_classes, unknown = spec.channels_out, np.full((len(spec.labels), 2), np.nan)
    scores, distances = list[FloatArray](), list[FloatArray]()
    for loaded in validation:
        predicted = _predicted(spec, network, loaded, precision)
        scores.append(dice(dice_counts(predicted, loaded.target, n_classes)))
        wanted = loaded.whole or not whole
        distances.append(_distances(predicted, loaded, n_classes, volumes=whole) if wanted else unknown)
    per_volume, far = np.array(scores), np.array(distances)
    return {
        "volumes": len(validation),
        "dice_se": mean_with_error(per_volume, rng)[1],
        "distances_in": 3 if whole else 2,
        "distance_volumes": sum(loaded.whole for loaded in validation) if whole else len(validation),
        "classes": measured({"dice": per_volume, "hd95_mm": far[..., 0], "msd_mm": far[..., 1]}, spec.labels, rng),
    }


def _predicted(spec: ModelSpec, network: nn.Module, loaded: Loaded, precision: Precision) -> Tensor:
    """(n, *S) likeliest class of each voxel, on the CPU."""
    was_training = network.training
    network.eval()
    with torch.inference_mode(), precision.autocast():
        parts = [
            likeliest(logits(spec, network, part.to(precision.device)))[1].cpu() for part in loaded.data.split(_BATCH)
        ]
    network.train(was_training)
    return torch.cat(parts)


def _distances(predicted: Tensor, loaded: Loaded, n_classes: int, *, volumes: bool) -> FloatArray:
    """(classes, 2) HD95 and mean surface distance in mm of a case: as a volume, or the mean over its annotated slices."""
    found, truth, valid = _without_padding(predicted, loaded.target)
    if volumes:
        return surface_distances(found, truth, n_classes, loaded.spacing)
    spacing = [mm for axis, mm in enumerate(loaded.spacing) if axis != loaded.axis]
    slices = zip(*(np.moveaxis(part, loaded.axis, 0) for part in (found, truth, valid)), strict=True)
    each = np.array([surface_distances(own, true, n_classes, spacing) for own, true, seen in slices if seen.any()])
    known = ~np.isnan(each)
    means: FloatArray = np.where(known, each, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return means


def _without_padding(predicted: Tensor, target: Tensor) -> list[npt.NDArray[Any]]:
    """Prediction, truth, and what is annotated of it, (n, *S) or (*S) of a volume; background where nobody annotated."""
    valid = (target != IGNORED).numpy()
    # Padding lies at the far ends.
    window = tuple(slice(0, int(ends.max(initial=-1)) + 1) for ends in valid.nonzero())
    parts = [np.where(valid, mask.numpy(), 0)[window] for mask in (predicted, target)] + [valid[window]]
    return [part[0] for part in parts] if target.ndim == 4 else parts
