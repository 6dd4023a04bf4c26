"""The series of an archive as volumes in files: each fetched once, verified, and kept while there is room."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from filelock import FileLock
from sqlalchemy.engine import RowMapping

from datastore.volume_io import write_volume
from dicom.archive import AS_STORED, PLAIN, Archive, NotGiven, is_uid
from dicom.geometry import SeriesGeometry
from dicom.planes import NoDecoder
from dicom.series import Series, read_series
from loop.catalogue import PASSING, Found
from loop.durable import atomic
from loop.errors import BadInput, NotFound
from loop.rounds import Loop

logger = logging.getLogger(__name__)

SUFFIX = ".nii.gz"
_IN_USE_SECONDS = 60.0
"""Who was told a file's name a moment ago may not have opened it yet."""
_MOST_BYTES = 8 << 30
"""Of one series in the archive's answer."""
_SAME_PLACE_MM = 1e-3


def path_of(study_uid: str, series_uid: str) -> str:
    """Where a series' volume is kept, relative to the folder of all; also how the loop's records name it."""
    return f"{study_uid}/{series_uid}{SUFFIX}"


def study_of(path: str) -> str:
    """UID of the study of the series that `path_of` gives this place."""
    return path.partition("/")[0]


class ArchiveImages:
    """Files of the archive's series, shared by all processes that use the folder.

    Args:
        folder: of the volumes; what is deleted there is fetched again.
        limit: bytes of all volumes together. Those that were not used for longest go first; those that somebody annotates
            now, or that were used within the last minute, stay, even if that is too much.
        clock: seconds since the epoch, as files have them.
    """

    def __init__(
        self, archive: Archive, folder: Path, loop: Loop, limit: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.archive, self.folder, self.loop, self.limit, self._clock = archive, folder, loop, limit, clock
        (folder / ".locks").mkdir(parents=True, exist_ok=True)

    def fetch(self, image_id: str) -> Path:
        """The image's volume, fetched and verified now if it is not here.

        Raises:
            NotFound: no such image. BadInput: it cannot be used; from now on the loop asks for it no more.
            Unavailable: the archive is down.
        """
        image = self.loop.catalogue.image(image_id)
        path = self.folder / str(image["path"])
        if self._is_here(image, path):
            return path
        if not is_uid(image_id):
            raise BadInput(f"The id of a series must be a UID, got {image_id[:100]!r}.")
        with FileLock(self.folder / ".locks" / f"{image_id}.lock"):
            image = self.loop.catalogue.image(image_id)  # somebody else may have fetched it meanwhile
            if self._is_here(image, path):
                return path
            if image["error"]:
                raise BadInput(image["error"])
            try:
                self._fetch(image, path)
            except (BadInput, NotFound) as error:
                # What the archive gives and cannot be used stays so; what it does not give, it may give later.
                passing = isinstance(error, NotGiven | NotFound)
                reason = f"{error} {PASSING}" if passing else str(error)
                self.loop.unusable(image_id, reason)
                raise BadInput(reason) from None
        self._make_room(path)
        return path

    def geometry(self, image_id: str) -> SeriesGeometry:
        """Where the image's slices are in the archive; kept when its volume is not. Raises as `fetch`."""
        image = self.loop.catalogue.image(image_id)
        file = self._geometry_file(self.folder / str(image["path"]))
        if image["shape"] is None or not file.is_file():
            self.fetch(image_id)
        return SeriesGeometry.read(file)

    def known_geometry(self, image_id: str) -> SeriesGeometry | None:
        """As `geometry`, without fetching anything: None where the series was not fetched yet. Raises NotFound: no such image."""
        image = self.loop.catalogue.image(image_id)
        file = self._geometry_file(self.folder / str(image["path"]))
        return SeriesGeometry.read(file) if image["shape"] is not None and file.is_file() else None

    def _is_here(self, image: RowMapping, path: Path) -> bool:
        """Whether the volume is here and verified, which counts as a use of it."""
        if image["shape"] is None or image["error"]:
            return False
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _geometry_file(self, path: Path) -> Path:
        return path.with_name(path.name.removesuffix(SUFFIX) + ".json")

    def _fetch(self, image: RowMapping, path: Path) -> None:
        began = time.monotonic()
        series = self._verified(image, study_of(image["path"]))
        geometry = series.geometry
        if image["n_labeled"]:
            self._check_same(image, geometry)
        with atomic(self._geometry_file(path), durable=False) as temporary:
            temporary.write_text(geometry.to_json())
        # The volume comes last: where it is, the rest is.
        write_volume(path, series.volume.array, series.volume.affine, durable=False)
        self.loop.catalogue.sync(
            [
                Found(
                    image["id"], image["path"], image["version"], geometry.shape, series.volume.spacing,
                    [list(row) for row in geometry.affine],
                )
            ],
            [],
            self.loop.clock(),
        )  # fmt: skip
        logger.info("Fetched %s, %s voxels, in %.1f s", image["id"], geometry.shape, time.monotonic() - began)

    def _verified(self, image: RowMapping, study_uid: str) -> Series:
        """The series as the archive has it, or uncompressed by the archive where we cannot."""
        try:
            return self._read(image["id"], study_uid, AS_STORED)
        except NoDecoder as error:
            try:
                return self._read(image["id"], study_uid, PLAIN)
            except (BadInput, NotFound):
                raise error from None

    def _read(self, series_uid: str, study_uid: str, syntax: str) -> Series:
        place = Path(tempfile.mkdtemp(prefix=".fetching-", dir=self.folder))
        try:
            files = self.archive.fetch(study_uid, series_uid, place, most=_MOST_BYTES, syntax=syntax)
            series = read_series(files)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if (series.geometry.study_uid, series.geometry.series_uid) != (study_uid, series_uid):
            raise BadInput(f"the archive gives another series for it, {series.geometry.series_uid[:70]!r}.")
        return series

    def _check_same(self, image: RowMapping, geometry: SeriesGeometry) -> None:
        """Raise BadInput if the series is not the one that was annotated."""
        if image["shape"] is None:
            return
        same = list(geometry.shape) == image["shape"]
        if not same or np.abs(geometry.matrix - np.array(image["affine"])).max() > _SAME_PLACE_MM:
            raise BadInput(
                f"it changed in the archive after slices were annotated: it was {image['shape']} voxels, and is "
                f"{list(geometry.shape)}, or lies elsewhere."
            )

    def _make_room(self, newest: Path) -> None:
        """Delete what was not used for longest until the rest fits."""
        there = []
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process makes room too
                continue
            there.append((stat.st_mtime, stat.st_size, path))
        used = sum(size for _, size, _ in there)
        if used <= self.limit:
            return
        annotated = self._annotated()
        for at, size, path in sorted(there):
            if used <= self.limit:
                return
            name = path.name.removesuffix(SUFFIX)
            if path != newest and name not in annotated and self._clock() - at > _IN_USE_SECONDS:
                path.unlink(missing_ok=True)
                used -= size

    def _annotated(self) -> Collection[str]:
        return self.loop.leased_images()
