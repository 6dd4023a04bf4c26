"""What a representation learner is: a network that makes a vector of a slice, trained without masks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from loop.errors import unknown
from models.preprocess import normalised


@dataclass(frozen=True)
class Representation:
    """A learner and everything about it that is not weights.

    Attributes:
        name: the `model` of the signals that it makes.
        size: (h, w) that slices are resized to.
        outputs: D of the vectors.
        uses_labels: learns from who is labelled, and is trained anew when that changes.
        build: makes the network; its forward is (B, 1, h, w) -> (B, D).
    """

    name: str
    size: tuple[int, int]
    outputs: int
    uses_labels: bool
    build: Callable[[], nn.Module]

    def network(self, seed: int) -> nn.Module:
        """A freshly initialised network, the same for the same seed; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()


def slices_of(array: npt.NDArray[np.generic], axis: int, size: tuple[int, int]) -> Tensor:
    """All slices of a volume (I, J, K) along the axis, normalised over the volume: (n, 1, h, w) float32.

    Raises:
        BadInput: a voxel is not finite.
    """
    items = normalised(array).movedim(axis, 0)[:, None]
    return functional.interpolate(items, size=size, mode="bilinear", align_corners=False, antialias=True)


_learners: dict[str, Representation] = {}


def register(learner: Representation) -> None:
    """Make a learner known by its name.

    Raises:
        ValueError: the name is taken.
    """
    if learner.name in _learners:
        raise ValueError(f"A representation learner named {learner.name!r} is already registered.")
    _learners[learner.name] = learner


def names() -> list[str]:
    """The names of all learners, sorted."""
    return sorted(_learners)


def get(name: str) -> Representation:
    """The learner of that name; raises NotFound with the known ones."""
    if name not in _learners:
        raise unknown("representation learner", name, names())
    return _learners[name]
