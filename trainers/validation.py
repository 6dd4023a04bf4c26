"""How good a network is on what nobody trained with."""

from collections.abc import Sequence

import numpy as np
import torch

from loop.views import likeliest
from models.spec import ModelSpec
from models.windows import logits
from trainers.data import Loaded
from trainers.metrics import dice, dice_counts, mean_dice
from trainers.precision import Precision

_VALIDATION_BATCH = 32


def validate(
    spec: ModelSpec, network: torch.nn.Module, validation: Sequence[Loaded], precision: Precision
) -> tuple[float | None, list[float | None]]:
    """Mean Dice and Dice per class over the annotated slices of the validation cases."""
    if not validation:
        return None, [None] * len(spec.labels)
    network.eval()
    scores = []
    with torch.inference_mode(), precision.autocast():
        for loaded in validation:
            starts = range(0, len(loaded.data), _VALIDATION_BATCH)
            batches = (loaded.data[start : start + _VALIDATION_BATCH].to(precision.device) for start in starts)
            parts = [likeliest(logits(spec, network, batch))[1].cpu() for batch in batches]
            scores.append(dice(dice_counts(torch.cat(parts), loaded.target, spec.channels_out)))
    network.train()
    return mean_dice(np.array(scores))
