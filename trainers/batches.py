"""The order in which a training sees its items, and what it sees of each."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.preprocess import IGNORED
from models.spec import ModelSpec
from trainers.augment import augmented
from trainers.data import Loaded


def batches(spec: ModelSpec, training: Sequence[Loaded], batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless seeded batches: items drawn evenly, every second one cut around foreground, augmented."""
    generator = torch.Generator().manual_seed(seed)
    items = [(loaded, row) for loaded in training for row in range(len(loaded.data))]
    patch = _patch_size(spec, training)
    order: list[int] = []
    while True:
        cuts = []
        for index in range(batch_size):
            order = order or torch.randperm(len(items), generator=generator).tolist()
            loaded, row = items[order.pop()]
            cuts.append(_cut(loaded.data[row], loaded.target[row], patch, generator, around_foreground=index % 2 == 0))
        data, target = (torch.stack(parts) for parts in zip(*cuts, strict=True))
        yield augmented(data, target, generator)


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
