"""Signals on disk by (signal, version, model digest, item): a sweep that was done, or half done, is not done again."""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop.durable import atomic
from loop.pool import IntArray, Pool
from loop.signals import FloatArray, Signal


@dataclass(frozen=True)
class Keys:
    """What names a pool's items in the cache: each volume's image and file version, each row's position."""

    images: Sequence[str]
    pool: Pool


class SignalCache:
    """Chunks of values, each written whole; deleting the folder only costs time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _folder(self, signal: Signal, digest: str) -> Path:
        return self.folder / digest / f"{signal.name}-{signal.version}"

    def append(self, signal: Signal, digest: str, keys: Keys, rows: IntArray, values: FloatArray) -> None:
        """Keep the values (B,) or (B, D) of some rows."""
        volumes, index = np.unique(keys.pool.volume[rows], return_inverse=True)
        images = np.array([keys.images[volume] for volume in volumes])
        with atomic(self._folder(signal, digest) / f"{uuid.uuid4().hex}.npz", ".npz") as temporary:
            np.savez(temporary, images=images, index=index, position=keys.pool.position[rows], values=values)

    def load(self, signal: Signal, digest: str, keys: Keys) -> FloatArray | None:
        """(N,) or (N, D) float32 aligned to the pool, NaN where nothing is known; None if nothing is known at all."""
        start = np.full(len(keys.images), 0)
        volumes, firsts = np.unique(keys.pool.volume, return_index=True)
        start[volumes] = firsts
        number = {image: volume for volume, image in enumerate(keys.images)}
        found: FloatArray | None = None
        for file in sorted(self._folder(signal, digest).glob("[!.]*.npz")):
            with np.load(file, allow_pickle=False) as chunk:
                values = chunk["values"]
                volume = np.array([number.get(str(image), -1) for image in chunk["images"]])[chunk["index"]]
                rows = np.minimum(start[volume] + np.maximum(chunk["position"], 0), len(keys.pool) - 1)
                # A pool of volumes and one of slices, for example, share images but no items.
                known = (volume >= 0) & (keys.pool.volume[rows] == volume)
                known &= keys.pool.position[rows] == chunk["position"]
                rows = rows[known]
                if found is None:
                    found = np.full((len(keys.pool), *values.shape[1:]), np.nan, np.float32)
                found[rows] = values[known]
        return found

    def keep_only(self, digests: Sequence[str]) -> None:
        """Drop the values of all other models."""
        for folder in self.folder.glob("*"):
            if folder.name not in digests:
                shutil.rmtree(folder, ignore_errors=True)
