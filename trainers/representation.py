"""Training of representation learners: what they are given, and which learner is trained how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loop.errors import unknown
from models.representation import Representation

IntArray = npt.NDArray[np.int64]
Report = Callable[..., None]
"""Called with progress: epoch, epochs, fraction, loss."""


@dataclass(frozen=True)
class Slices:
    """Slices of a pool as a learner sees them.

    Attributes:
        data: (N, 1, h, w) float32, normalised over their volumes.
        volume, patient, position: (N,) as of the pool; a volume's slices are together, positions ascending.
        labeled: (N,) bool.
    """

    data: Tensor
    volume: IntArray
    patient: IntArray
    position: IntArray
    labeled: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class RepresentationSettings:
    """How long a learner is trained; 0 leaves a number to the learner.

    Attributes:
        epochs: passes over the slices.
        seed: of the initialisation and of every random step.
    """

    epochs: int = 0
    seed: int = 0


Train = Callable[[Representation, Slices, RepresentationSettings, torch.device, Report], dict[str, Tensor]]
"""Trains a learner from scratch; the weights of its network. Deterministic by the seed."""

_trainings: dict[str, Train] = {}


def register(name: str, train: Train) -> None:
    """Make the training of a learner known.

    Raises:
        ValueError: the name is taken.
    """
    if name in _trainings:
        raise ValueError(f"The learner {name!r} has a training already.")
    _trainings[name] = train


def train(
    learner: Representation, slices: Slices, settings: RepresentationSettings, device: torch.device, report: Report
) -> dict[str, Tensor]:
    """Train a learner on some slices.

    Raises:
        NotFound: nobody registered how. BadInput: the slices are too few for it.
    """
    if learner.name not in _trainings:
        raise unknown("training of the learner", learner.name, sorted(_trainings))
    return _trainings[learner.name](learner, slices, settings, device, report)


def describe(settings: RepresentationSettings) -> dict[str, Any]:
    """The settings as JSON, for a model's card."""
    return {"epochs": settings.epochs, "seed": settings.seed}
