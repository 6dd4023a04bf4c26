"""What is annotated in a studies folder, read from its store beside a server that may be running."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from datastore.volume_io import read_header
from loop.config import AppConfig
from loop.errors import BadInput, NextSliceError
from loop.store import Store, labels
from loop.submitted import Submitted

_TRIES = 5
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Whole:
    """A volume whose every slice is annotated; mask: its composite; slices: how many; made_from: what of both changes."""

    image: Path
    mask: Path
    patient: str
    slices: int
    made_from: str


@dataclass(frozen=True)
class Annotated:
    """The annotated volumes of a studies folder by image id.

    Attributes:
        partial: (annotated slices, all slices).
        unfit: why it cannot be used.
    """

    whole: Mapping[str, Whole]
    partial: Mapping[str, tuple[int, int]]
    unfit: Mapping[str, str]

    @property
    def patients(self) -> int:
        return len({one.patient for one in self.whole.values()})

    def left_out(self) -> str:
        """How many annotated volumes are not whole, and why, in a sentence; "" if all are."""
        told = []
        if self.partial:
            near = sorted(self.partial.items(), key=lambda pair: (pair[1][0] - pair[1][1], pair[0]))[:3]
            listed = ", ".join(f"{image_id} with {done} of {slices}" for image_id, (done, slices) in near)
            told.append(f"{len(self.partial)} because only a part of their slices is annotated (such as {listed})")
        told += [f"{count} because {why}" for why, count in sorted(Counter(self.unfit.values()).items())]
        return f"Left out of the annotated volumes: {'; '.join(told)}." if told else ""


def read_annotated(studies: Path, config: AppConfig, scratch: Path) -> Annotated:
    """Sort the annotated volumes of a studies folder; nothing is written there.

    Args:
        scratch: an empty folder for a copy of the store.

    Raises:
        BadInput: there is no store, or its labels are of other classes than the configured ones.
    """
    root, state = studies.resolve(), config.state_dir(str(studies))
    masks = (root if state == root / ".nextslice" else state) / "labels" / "final"
    with _opened(config.store_url or f"sqlite:///{state / 'store.sqlite'}", scratch) as store:
        rows = Submitted(store).labeled_images()
        _check_classes(store, config)
    whole: dict[str, Whole] = {}
    partial: dict[str, tuple[int, int]] = {}
    unfit: dict[str, str] = {}
    for row in rows:
        image, mask = root / row["path"], masks / f"{row['id']}.nii.gz"
        if why := _unfit(row, image, mask):
            unfit[row["id"]] = why
        elif len(row["slices"]) < row["n_slices"]:
            partial[row["id"]] = (len(row["slices"]), row["n_slices"])
        else:
            made_from = f"{row['version']} {row['submission']}"
            whole[row["id"]] = Whole(image, mask, row["patient"], row["n_slices"], made_from)
    return Annotated(whole, partial, unfit)


def _unfit(row: Mapping[str, Any], image: Path, mask: Path) -> str:
    """Why a volume cannot be used; "" if it can."""
    if row["missing"] or not image.is_file():
        return "the image is gone"
    if row["error"]:
        return "the image cannot be read"
    if not mask.is_file():
        return "the composite mask is not there"
    try:
        fits = list(read_header(image).shape) == list(row["shape"]) == list(read_header(mask).shape)
    except NextSliceError:
        return "the image or its mask cannot be read"
    return "" if fits else "the mask is not of the image's shape"


def _check_classes(store: Store, config: AppConfig) -> None:
    """Raise BadInput if voxels were counted for another number of classes than is configured."""
    with store.read() as connection:
        counted = connection.execute(sa.select(labels.c.voxels).order_by(labels.c.submission.desc())).scalars()
        newest = next((found for found in counted if found is not None), None)
    if newest is not None and len(newest) != len(config.labels) + 1:
        raise BadInput(
            f"labels must name the {len(newest) - 1} classes that were annotated, got {len(config.labels)} "
            f"({', '.join(config.labels)}). Give the settings that the server was started with: --conf labels NAMES."
        )


@contextmanager
def _opened(url: str, scratch: Path) -> Iterator[Store]:
    """A copy of an SQLite store; another database itself, which is only queried."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        _check_there(url)
        with closing(Store(url)) as store:
            yield store
        return
    file = Path(str(parsed.database))
    if not file.is_file():
        raise BadInput(
            f"The studies folder must have records of annotations, but {str(file)!r} is not there. Annotate first "
            "(nextslice serve), or say where they are: --conf state FOLDER."
        )
    copy = scratch / "store.sqlite"
    _copy(file, copy)
    with closing(Store(f"sqlite:///{copy}")) as store:
        yield store


def _check_there(url: str) -> None:
    """Raise BadInput for a database without our tables, which `Store` would make."""
    engine = sa.create_engine(url)
    try:
        there = sa.inspect(engine).has_table("images")
    finally:
        engine.dispose()
    if not there:
        raise BadInput("The database of store_url must hold records of annotations; it has no table of ours.")


def _copy(file: Path, target: Path) -> None:
    """A consistent copy of an SQLite file, without a trace beside it.

    Somebody has the file open, or was killed, if there is a -wal file: then it is read with it, which disturbs no writer.
    If there is none, opening would leave one: the file alone is read, again if somebody opened it meanwhile.
    """
    wal = file.with_name(f"{file.name}-wal")
    for _ in range(_TRIES):
        alone, before = not wal.exists(), file.stat().st_mtime_ns
        source = f"{file.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        try:
            with (
                closing(sqlite3.connect(source, uri=True, timeout=60)) as read,
                closing(sqlite3.connect(target)) as copy,
            ):
                read.backup(copy)
        except sqlite3.DatabaseError as error:
            trouble = str(error)
        else:
            if not alone or (not wal.exists() and file.stat().st_mtime_ns == before):
                return
            trouble = "it was written to at every try"
        time.sleep(_WAIT_SECONDS)
    raise BadInput(f"{str(file)!r} must be a store of NextSlice that can be read: {trouble}.")
