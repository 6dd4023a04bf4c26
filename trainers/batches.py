"""The order in which a training sees its items, and what it sees of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.preprocess import IGNORED
from models.spec import ModelSpec
from trainers.augment import Changes, augmented
from trainers.data import Loaded


@dataclass(frozen=True)
class Batch:
    """Cut items and what is to be done to them, on the CPU.

    Attributes:
        data: (B, 1, *S). target: (B, *S) uint8, class or IGNORED.
    """

    data: Tensor
    target: Tensor
    changes: Changes

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Augmented data and target on the device."""
        return augmented(
            self.data.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.changes
        )


def batches(
    spec: ModelSpec, training: Sequence[Loaded], batch_size: int, seed: int, *, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Endless seeded batches: items drawn evenly, every second one cut around foreground.

    Each place of a batch has a random generator of its own, so that a rank makes nothing but its share of the batch, and
    what all make together is what one alone would have made. `ranks` must divide `batch_size`.
    """
    generator = torch.Generator().manual_seed(seed)
    items = [(loaded, row) for loaded in training for row in range(len(loaded.data))]
    patch = _patch_size(spec, training)
    order: list[int] = []
    while True:
        cuts, generators = [], []
        for place, own_seed in enumerate(torch.randint(2**62, (batch_size,), generator=generator).tolist()):
            order = order or torch.randperm(len(items), generator=generator).tolist()
            loaded, row = items[order.pop()]
            if place * ranks // batch_size == rank:
                own = torch.Generator().manual_seed(own_seed)
                cuts.append(_cut(loaded.data[row], loaded.target[row], patch, own, around_foreground=place % 2 == 0))
                generators.append(own)
        data, target = (torch.stack(parts) for parts in zip(*cuts, strict=True))
        yield Batch(data, target, Changes.drawn(generators, patch))


def _patch_size(spec: ModelSpec, training: Sequence[Loaded]) -> tuple[int, ...]:
    """The configured patch, else the largest case up to the model's bound; a multiple of the divisor."""
    if spec.patch:
        return spec.whole_patch
    largest = np.max([loaded.data.shape[2:] for loaded in training], axis=0)
    return tuple(int(min(size, spec.largest_patch)) for size in largest)


def _cut(
    data: Tensor, target: Tensor, patch: tuple[int, ...], generator: torch.Generator, *, around_foreground: bool
) -> tuple[Tensor, Tensor]:
    """A patch of one item, padded where the item is smaller."""
    starts = []
    centre = _foreground_voxel(target, generator) if around_foreground else None
    for axis, size in enumerate(patch):
        room = max(0, target.shape[axis] - size)
        start = int(torch.randint(room + 1, (1,), generator=generator))
        starts.append(start if centre is None else min(room, max(0, centre[axis] - size // 2)))
    window = tuple(slice(start, start + size) for start, size in zip(starts, patch, strict=True))
    data, target = data[(slice(None), *window)], target[window]
    missing = [size - have for size, have in zip(patch, target.shape, strict=True)]
    if any(missing):
        pairs = [amount for lack in reversed(missing) for amount in (0, lack)]
        data, target = (
            torch.nn.functional.pad(data, pairs),
            torch.nn.functional.pad(target, pairs, value=IGNORED),
        )
    return data, target


def _foreground_voxel(target: Tensor, generator: torch.Generator) -> list[int] | None:
    found = ((target > 0) & (target != IGNORED)).nonzero()
    if not len(found):
        return None
    voxel: list[int] = found[int(torch.randint(len(found), (1,), generator=generator))].tolist()
    return voxel
