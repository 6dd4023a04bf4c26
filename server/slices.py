"""Slices of volumes for pages: read once, kept in memory while there is room, and as pictures on disk."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datastore.volume_io import read_slice, read_volume
from loop.durable import atomic
from loop.errors import NotFound

_MEMORY_BYTES = 256 << 20
_DISK_BYTES = 256 << 20
_LOOK_AT_SIZE_EVERY = 200
_READERS = 2
"""Volumes decoded at the same time: each needs memory for all of it."""


class SliceReader:
    """Slices of files; a compressed one is decoded as a whole, and kept for the slices that are mostly asked for next."""

    def __init__(self, memory: int = _MEMORY_BYTES) -> None:
        self.memory = memory
        self._kept: OrderedDict[tuple[str, int, int], npt.NDArray[Any]] = OrderedDict()
        self._guard, self._reading = threading.Lock(), threading.BoundedSemaphore(_READERS)

    def __call__(self, path: Path, axis: int, index: int) -> npt.NDArray[Any]:
        """(A, B), without the slice axis.

        Raises:
            BadInput: the file cannot be read, or has no such slice. NotFound: it went meanwhile.
        """
        try:
            return self._slice(path, axis, index)
        except FileNotFoundError:
            raise NotFound(f"{path.name} went while it was read: try again.") from None

    def _slice(self, path: Path, axis: int, index: int) -> npt.NDArray[Any]:
        if path.name.lower().endswith(".nii"):
            return read_slice(path, axis, index)
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if (volume := self._find(key)) is None:
            with self._reading:
                if (volume := self._find(key)) is None:
                    volume = read_volume(path).array
                    self._keep(key, volume)
        plane: npt.NDArray[Any] = np.take(volume, index, axis)
        return plane

    def _find(self, key: tuple[str, int, int]) -> npt.NDArray[Any] | None:
        with self._guard:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
            return found

    def _keep(self, key: tuple[str, int, int], volume: npt.NDArray[Any]) -> None:
        with self._guard:
            self._kept[key] = volume
            while self._kept and sum(kept.nbytes for kept in self._kept.values()) > self.memory:
                self._kept.popitem(last=False)


class PictureCache:
    """Encoded pictures on disk by what they show; those that were not looked at for longest go first."""

    def __init__(self, folder: Path, limit: int = _DISK_BYTES) -> None:
        self.folder, self.limit = folder, limit
        self._guard, self._added = threading.Lock(), 0

    @staticmethod
    def name(facts: tuple[object, ...]) -> str:
        """Of a picture that follows from these facts alone."""
        return hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def get(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The picture, made if it is not here."""
        file = self.folder / name[:2] / f"{name}.png"
        try:
            data = file.read_bytes()
            os.utime(file)
        except OSError:
            data = make()
            with atomic(file, ".png", durable=False) as temporary:
                temporary.write_bytes(data)
            self._clear_sometimes()
        return data

    def _clear_sometimes(self) -> None:
        with self._guard:
            self._added += 1
            if self._added % _LOOK_AT_SIZE_EVERY != 1:
                return
        there = []
        for file in self.folder.glob("*/[!.]*.png"):
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            there.append((stat.st_mtime, stat.st_size, file))
        used = 0
        for _, size, file in sorted(there, reverse=True):
            used += size
            if used > self.limit:
                file.unlink(missing_ok=True)
