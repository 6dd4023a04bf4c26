"""How good a model is on the patients held aside."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.campaign.study import Study
from datastore.volume_io import Volume, read_volume
from infers.engine import Segmenter, pick_device
from loop.config import AppConfig
from loop.read_ahead import ahead
from models.spec import ModelSpec
from trainers.metrics import dice, dice_counts_of_each
from trainers.surface import measures


@dataclass(frozen=True)
class Score:
    """Of one class in one volume; None where a measure says nothing.

    Attributes:
        dice_2d: mean over the slices that have the class or a prediction of it. dice_3d: over the volume.
        hd95, msd: mm, of the volume's surfaces as `surface_distances` says; lower is better.
    """

    patient: str
    volume: str
    label: str
    dice_2d: float | None
    dice_3d: float | None
    hd95: float | None
    msd: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    study: Study,
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    config: AppConfig,
) -> list[Score]:
    """Scores of every class on every test volume."""
    segmenter = Segmenter(
        spec, weights, device=pick_device(config.device), batch=config.sweep_batch, seed=config.seed
    )  # fmt: skip
    found = []
    for image_id, (image, truth) in ahead(
        lambda image_id: (read_volume(study.image(image_id)), read_volume(study.mask(image_id))), study.test
    ):
        axis = config.axis_of(image.spacing)
        predicted = segmenter.predict(image, axis)
        found += _scores(study.patients[image_id], image_id, spec.labels, predicted, truth, axis)
    return found


def _scores(
    patient: str,
    image_id: str,
    labels: Sequence[str],
    predicted: npt.NDArray[np.uint8],
    truth: Volume,
    axis: int,
) -> list[Score]:
    true, classes = truth.array.astype(np.uint8), len(labels) + 1
    by_slice, true_by_slice = (torch.from_numpy(np.moveaxis(mask, axis, 0)) for mask in (predicted, true))
    per_slice = dice(dice_counts_of_each(by_slice, true_by_slice, classes))
    whole = measures(predicted, true, classes, truth.spacing)
    return [
        Score(patient, image_id, label, _mean(per_slice[:, k]), *map(_number, whole[k]))
        for k, label in enumerate(labels)
    ]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
