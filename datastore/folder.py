"""A local folder of images, which are never changed.

In the studies folder: the images (sub-folders too), `labels/final` and `labels/original` with the composite masks, and
`.nextslice` (or the configured state folder) with the records and every submission as it was sent.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from sqlalchemy.engine import RowMapping

from datastore.rules import check_id
from datastore.served import ServedDatastore
from datastore.volume_io import SUFFIXES, Header, read_header, read_volume, suffix_of
from loop.catalogue import Found
from loop.durable import place_durably
from loop.errors import BadInput, Conflict, Forbidden, NextSliceError, NotFound
from loop.rounds import Loop

_OWN_FOLDERS = {"labels", "lost+found"}


class FolderDatastore(ServedDatastore):
    """Images of a folder, with the loop's records of them.

    Args:
        root: the studies folder.
        state: where submissions are kept.
        clock: seconds since the epoch.
    """

    def __init__(self, root: Path, state: Path, loop: Loop, clock: Callable[[], float] = time.time) -> None:
        root = root.resolve()
        labels = (root if state == root / ".nextslice" else state) / "labels"
        super().__init__(root, labels, state, loop, clock, name=root.name, description="images of a local folder")
        self._scan_guard = threading.Lock()

    # --- images

    def refresh(self) -> None:
        """Take in what changed in the folder. Known, unchanged images are not opened."""
        with self._scan_guard:
            there = self._scan()
            known = self.loop.catalogue.versions()
            changed = [image_id for image_id, (_, version) in there.items() if known.get(image_id) != version]
            found = [self._found(image_id, *there[image_id]) for image_id in changed]
            self.loop.catalogue.sync(found, sorted(set(known) - set(there)), self._clock())
        self.notice_behind()

    def _scan(self) -> dict[str, tuple[Path, str]]:
        """{image id: (path, version)} of every file that claims to be an image; only names and times are read."""
        there: dict[str, tuple[Path, str]] = {}
        folders = [self.root]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if not self.is_ours(Path(entry.path)):
                            folders.append(Path(entry.path))
                    elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                        stat = entry.stat()
                        path = Path(entry.path)
                        there.setdefault(self._id_of(path), (path, f"{stat.st_size}-{stat.st_mtime_ns}"))
        return there

    def is_ours(self, path: Path) -> bool:
        """Whether no image of the user can be there."""
        return path.is_relative_to(self.state) or path.relative_to(self.root).parts[0] in _OWN_FOLDERS

    def _relative(self, path: Path) -> str:
        """A name that is not Unicode gets backslashes, which `check_id` tells of."""
        return os.fsencode(path.relative_to(self.root).as_posix()).decode("utf-8", "backslashreplace")

    def _id_of(self, path: Path) -> str:
        relative = self._relative(path)
        return relative[: -len(suffix_of(relative))]

    def _found(self, image_id: str, path: Path, version: str) -> Found:
        relative = self._relative(path)
        try:
            check_id(image_id)
            if not path.resolve().is_relative_to(self.root):
                raise BadInput(f"{relative} is a link that leaves the studies folder.")
            header = read_header(path)
        except NextSliceError as error:
            return Found(image_id, relative, version, error=str(error))
        i, j, k = header.shape
        return Found(image_id, relative, version, (i, j, k), header.spacing, header.affine.tolist())

    def image_path(self, image_id: str) -> Path:
        """The image's file.

        Raises:
            NotFound: no such image, or its file is gone. Forbidden: it is a link that leaves the studies folder.
        """
        return self._path(self.loop.catalogue.image(image_id))

    def _path(self, image: RowMapping) -> Path:
        path = self.root / str(image["path"])
        if not path.resolve().is_relative_to(self.root):
            raise Forbidden(f"The image {image['id']!r} is a link that leaves the studies folder.")
        if not path.is_file():
            raise NotFound(f"The file of the image {image['id']!r} is gone.")
        return path

    def _header(self, image: RowMapping) -> Header:
        self._readable(image)
        return Header(tuple(image["shape"]), np.array(image["affine"]))

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Take in an uploaded volume under a new id.

        Raises:
            BadInput: the id or the file breaks a rule. Conflict: there is an image of that id.
        """
        source = Path(image_filename)
        suffix = suffix_of(source.name)
        check_id(image_id)
        target = self.root / f"{image_id}{suffix}"
        if self.is_ours(target):
            raise BadInput(
                f"An image id must not begin with {PurePosixPath(image_id).parts[0]!r}: that folder is not for images."
            )
        if self._id_of(target) != image_id:
            raise BadInput(f"An image id must not end with a file type, got {image_id[-20:]!r} with {suffix}.")
        if not target.resolve().is_relative_to(self.root):
            raise BadInput(f"The image id {image_id!r} leaves the studies folder.")
        read_volume(source)
        with self._lock(image_id):
            if image_id in self._scan_one(target):
                raise Conflict(
                    f"There is an image {image_id!r} already; images are never overwritten. Choose another id."
                )
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise Conflict(f"The image id {image_id!r} takes a file for a folder. Choose another id.") from None
            place_durably(source, target, own=self._is_own(source))
            self.refresh()
        if image_info:
            self.update_image_info(image_id, dict(image_info))
        return image_id

    def _scan_one(self, target: Path) -> set[str]:
        """Ids of the images beside a target, whatever their suffix."""
        if not target.parent.is_dir():
            return set()
        return {self._id_of(path) for path in target.parent.iterdir() if path.name.lower().endswith(SUFFIXES)}
