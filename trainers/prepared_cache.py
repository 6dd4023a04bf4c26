"""Preprocessed slices on disk, so that the next training need not decode and preprocess their images again."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from loop.durable import atomic
from models.preprocess import PREPROCESSING
from models.spec import ModelSpec


@dataclass(frozen=True)
class Inputs:
    """What a training needs of an image.

    Attributes:
        shape: (I, J, K) of the image. spacing: mm along i, j, k. grid: mm on the network's grid, see `grid_spacing`.
        rows: slices, ascending, or [0] for a volume. data: (n, 1, *S), preprocessed, of those rows.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    grid: tuple[float, ...]
    rows: list[int]
    data: Tensor

    def of(self, rows: list[int]) -> Tensor:
        """The data of some of the rows."""
        return self.data[[self.rows.index(row) for row in rows]]


class PreparedCache:
    """A file for each image and way of preprocessing; deleting the folder only costs time.

    Args:
        limit: bytes of all files together; those that were not used for longest go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def get(
        self, spec: ModelSpec, image: Path, version: str, axis: int, rows: list[int], read: Callable[[], Inputs]
    ) -> Inputs:
        """The image's inputs, of these rows at least; from `read`, and kept, where they are not here yet."""
        grid = [spec.spatial_dims, spec.divisor, spec.smallest, spec.spacing, spec.plans]
        facts = [PREPROCESSING, str(image), version, axis, *grid]
        file = self.folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npz"
        found = _load(file)
        if found is None or not set(rows) <= set(found.rows):
            found = read()
            self._keep(file, found)
        return found

    def _keep(self, file: Path, inputs: Inputs) -> None:
        # Not synced: after a crash of the machine the file may be damaged, and is then read as if it were not there.
        with atomic(file, ".npz", durable=False) as temporary:
            np.savez(
                temporary,
                shape=inputs.shape,
                spacing=inputs.spacing,
                grid=inputs.grid,
                rows=inputs.rows,
                data=inputs.data.numpy(),
            )
        files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in self.folder.glob("[!.]*.npz")), reverse=True)
        used = 0
        for _, size, kept in files:
            used += size
            if used > self.limit:
                kept.unlink(missing_ok=True)


def _load(file: Path) -> Inputs | None:
    """What a file holds, which counts as used now; None if it is not there or damaged."""
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as kept:
            facts = [tuple(kept[key].tolist()) for key in ("shape", "spacing", "grid")]
            found = Inputs(facts[0], facts[1], facts[2], kept["rows"].tolist(), torch.from_numpy(kept["data"]))
        os.utime(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found
