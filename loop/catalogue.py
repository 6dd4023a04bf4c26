"""The images the loop knows: which there are, whose they are, and the pool they make."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from loop import events
from loop.config import AppConfig
from loop.errors import BadInput, NotFound
from loop.pool import WHOLE, ItemTable, Pool
from loop.statements import IMAGE
from loop.store import Store, images, labels, leases, meta, skips

_MOST_NOTES = 1 << 20
_CHANGE = "images"
"""Key of the number that every change of the images raises: other processes see that their counts are old."""
PASSING = "It is asked for again later."
"""Ends the reason why an image cannot be used, where that may pass by itself."""


@dataclass(frozen=True)
class Found:
    """An image as the data folder sees it.

    Attributes:
        path: relative to the data folder.
        version: changes when the file does.
        shape, spacing: voxels and mm along the three axes (i, j, k); None if the header could not be read.
        affine: (4, 4) rows, to RAS mm; None as shape.
        error: why it cannot be used.
        patient: whose it is; None reads it from the id.
        n_slices: while the shape is not known, how many slices it is said to have, along k.
        info: what viewers are told of it, beside their own notes.
    """

    id: str
    path: str
    version: str
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    affine: list[list[float]] | None = None
    error: str | None = None
    patient: str | None = None
    n_slices: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


class Catalogue:
    """Images, patients and their split; builds the pool from what is known, without opening a file."""

    def __init__(self, store: Store, config: AppConfig) -> None:
        self.store, self.config = store, config
        self._counted: tuple[int | None, dict[str, int]] | None = None

    def versions(self) -> dict[str, str]:
        """{image id: version} of all images that are there."""
        with self.store.read() as connection:
            return dict(connection.execute(sa.select(images.c.id, images.c.version).where(~images.c.missing)).all())

    def sync(self, found: Sequence[Found], gone: Sequence[str], at: float) -> None:
        """Take in new and changed images, and mark those that are gone; labels of either are kept."""
        if not found and not gone:
            return
        with self.store.write() as connection:
            known = self._rows(connection, [image.id for image in found])
            splits = self._splits(connection, [self._patient(image) for image in found if image.id not in known])
            fresh = [self._fresh(image, splits, at) for image in found if image.id not in known]
            if fresh:
                connection.execute(images.insert(), fresh)
            for image in found:
                if image.id in known:
                    self._update(connection, image, known[image.id])
            for image_id in gone:
                connection.execute(images.update().where(images.c.id == image_id).values(missing=True))
            self._count_anew(connection)
            events.log(connection, at, "images_changed", found=len(found), gone=len(gone))

    def _rows(self, connection: Connection, ids: Sequence[str]) -> dict[str, RowMapping]:
        rows: dict[str, RowMapping] = {}
        for start in range(0, len(ids), 500):
            query = sa.select(images).where(images.c.id.in_(ids[start : start + 500]))
            rows.update({row["id"]: row for row in connection.execute(query).mappings()})
        return rows

    def _splits(self, connection: Connection, patients: Sequence[str]) -> dict[str, str]:
        """Each patient's split; new ones are dealt in hash order so that the share holds, and never dealt again."""
        known = dict(connection.execute(sa.select(images.c.patient, images.c.split).distinct()).all())
        n_validation = sum(split == "validation" for split in known.values())
        share = self.config.validation_share
        for patient in sorted(set(patients) - set(known), key=self._lot):
            wanted = max(int(share * (len(known) + 1)), 1 if share and len(known) else 0)
            known[patient] = "validation" if n_validation < wanted else "training"
            n_validation += known[patient] == "validation"
        return known

    def _lot(self, patient: str) -> bytes:
        return hashlib.sha256(f"{self.config.seed}/{patient}".encode()).digest()

    def _fresh(self, image: Found, splits: Mapping[str, str], at: float) -> dict[str, Any]:
        patient = self._patient(image)
        base = {"id": image.id, "patient": patient, "split": splits[patient], "added_at": at, "info": dict(image.info)}
        return base | self._facts(image)

    def _patient(self, image: Found) -> str:
        return self.config.patient_of(image.id) if image.patient is None else image.patient

    def _facts(self, image: Found) -> dict[str, Any]:
        facts: dict[str, Any] = {"path": image.path, "version": image.version, "error": image.error, "missing": False}
        if image.shape is None or image.spacing is None:
            unknown = {"shape": None, "spacing": None, "affine": None}
            if image.n_slices is None:
                return facts | unknown | {"axis": None, "n_slices": 0}
            return facts | unknown | {"axis": 2, "n_slices": image.n_slices}
        axis = self.config.axis_of(image.spacing)
        n_slices = image.shape[axis]
        geometry = {"shape": list(image.shape), "spacing": list(image.spacing), "affine": image.affine}
        return facts | geometry | {"axis": axis, "n_slices": n_slices}

    def _update(self, connection: Connection, image: Found, known: RowMapping) -> None:
        facts = self._facts(image)
        listed_again = image.shape is None and image.n_slices == known["n_slices"]
        if known["n_labeled"] and image.error is None and known["shape"] and listed_again:
            # An archive lists it as it was annotated, after it was gone or had other instances; who fetches it compares.
            facts = {key: facts[key] for key in ("path", "version", "error", "missing")}
        elif known["n_labeled"] and image.error is None and facts["shape"] != known["shape"]:
            # Its labels no longer fit: keep the facts they were made for and ask for nothing more of it.
            facts = {
                "version": image.version,
                "error": f"it changed from {_size(known)} to {_size(facts)} after slices were annotated",
            }
        if known["n_labeled"] and image.error is not None:
            facts = {"version": image.version, "error": image.error}
        connection.execute(images.update().where(images.c.id == image.id).values(facts))

    def image(self, image_id: str) -> RowMapping:
        """The record of an image.

        Raises:
            NotFound: no such image, or its file is gone.
        """
        with self.store.read() as connection:
            row = connection.execute(IMAGE, {"image": image_id}).mappings().one_or_none()
        if row is None or row["missing"]:
            raise NotFound(f"There is no image {image_id[:200]!r}.")
        return row

    def mark_unreadable(self, image_id: str, error: str, at: float) -> None:
        """Ask no more for an image whose voxels could not be read; it comes back when its file changes."""
        with self.store.write() as connection:
            connection.execute(images.update().where(images.c.id == image_id).values(error=error))
            self._count_anew(connection)
            events.log(connection, at, "image_unreadable", image=image_id, error=error)

    def not_given(self) -> list[str]:
        """Images that are unusable only because their archive could not give them (`PASSING`)."""
        query = sa.select(images.c.id).where(~images.c.missing, images.c.error.endswith(PASSING, autoescape=True))
        with self.store.read() as connection:
            return list(connection.execute(query).scalars())

    def try_again(self, image_ids: Sequence[str], at: float) -> None:
        """Ask for images again that were not given before."""
        if not image_ids:
            return
        again = images.c.id.in_(list(image_ids)) & images.c.error.endswith(PASSING, autoescape=True)
        with self.store.write() as connection:
            found = connection.execute(images.update().where(again).values(error=None)).rowcount
            if found:
                self._count_anew(connection)
                events.log(connection, at, "images_changed", found=found, gone=0)

    def update_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        """Add to the free notes that viewers keep about an image.

        Raises:
            NotFound: no such image. BadInput: too many notes.
        """
        self.image(image_id)
        with self.store.write() as connection:
            known = connection.execute(sa.select(images.c.info).where(images.c.id == image_id)).scalar_one()
            if len(json.dumps({**known, **info})) > _MOST_NOTES:
                raise BadInput(f"The notes about an image must be at most {_MOST_NOTES >> 20} MiB of JSON in all.")
            connection.execute(images.update().where(images.c.id == image_id).values(info={**known, **info}))

    def ids(self, *, labeled: bool) -> list[str]:
        """Usable images with (or without) annotated slices."""
        has = images.c.n_labeled > 0 if labeled else images.c.n_labeled == 0
        query = sa.select(images.c.id).where(~images.c.missing, images.c.error.is_(None), has).order_by(images.c.row)
        with self.store.read() as connection:
            return list(connection.execute(query).scalars())

    def behind(self) -> list[str]:
        """Images whose composite mask lacks their newest submission."""
        query = sa.select(images.c.id).where(
            images.c.composite < images.c.submission, ~images.c.missing, images.c.error.is_(None)
        )
        with self.store.read() as connection:
            return list(connection.execute(query).scalars())

    def listing(self) -> list[RowMapping]:
        """id, path, info, n_labeled, n_slices, submission of every image that is there."""
        columns = (
            images.c.id,
            images.c.path,
            images.c.info,
            images.c.n_labeled,
            images.c.n_slices,
            images.c.submission,
        )
        with self.store.read() as connection:
            return list(
                connection.execute(sa.select(*columns).where(~images.c.missing).order_by(images.c.row)).mappings()
            )

    def located(self) -> dict[str, RowMapping]:
        """{id: its path, version, axis, n_slices} of every image with slices."""
        columns = (images.c.id, images.c.path, images.c.version, images.c.axis, images.c.n_slices)
        query = sa.select(*columns).where(images.c.n_slices > 0)
        with self.store.read() as connection:
            return {row["id"]: row for row in connection.execute(query).mappings()}

    def build_pool(self) -> Pool:
        """The pool as it is now: rows in the order in which images came, slices ascending. No file is opened."""
        with self.store.read() as connection:
            columns = (
                images.c.id,
                images.c.patient,
                images.c.n_slices,
                images.c.n_labeled,
                images.c.error,
                images.c.missing,
            )
            rows = connection.execute(sa.select(*columns).where(images.c.n_slices > 0).order_by(images.c.row)).all()
            counted = connection.execute(sa.select(labels.c.voxels)).scalars().all()
            marked = [connection.execute(sa.select(t.c.image_id, t.c.slice)).all() for t in (labels, skips, leases)]
        n_classes = len(self.config.labels) + 1
        counted = [found for found in counted if found is not None and len(found) == n_classes]
        ids = [row.id for row in rows]
        whole = self.config.unit == "volume"
        lengths = np.ones(len(rows), np.int64) if whole else np.array([row.n_slices for row in rows], np.int64)
        start = np.concatenate([[0], np.cumsum(lengths)])[: len(rows)].astype(np.int64)
        volume = np.repeat(np.arange(len(rows)), lengths)
        position = np.full(len(volume), WHOLE) if whole else np.arange(len(volume)) - np.repeat(start, lengths)
        patient = np.unique([row.patient for row in rows], return_inverse=True)[1].astype(np.int64)
        held = np.array([bool(row.error or row.missing) for row in rows], bool)[volume]
        labeled = np.zeros(len(volume), bool)
        at = {image_id: (int(start[i]), int(lengths[i])) for i, image_id in enumerate(ids)}
        if whole:
            labeled[:] = [row.n_labeled >= row.n_slices for row in rows]
        else:
            _mark(labeled, at, marked[0])
        for pairs in marked[1:]:
            _mark(held, at, pairs)
        voxels = np.array(counted, np.int64).reshape(-1, n_classes).sum(axis=0)
        return Pool(ItemTable(ids, volume, position), labeled, held, volume, patient[volume], position, voxels)

    def counts(self) -> dict[str, int]:
        """Images and slices: total, labelled, unreadable, skipped, leased. Costs nothing that grows with the pool."""
        with self.store.read() as connection:
            # Labels stay counted when their image later becomes unreadable: nothing an annotator did disappears.
            query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(images.c.n_labeled), 0))
            done = connection.execute(query.where(images.c.n_labeled > 0)).one()
            skipped, leased = (
                connection.execute(sa.select(sa.func.count()).select_from(t)).scalar_one() for t in (skips, leases)
            )
            totals = self._totals(connection)
        return {
            **totals,
            "labeled_slices": int(done[1]),
            "labeled_images": done[0],
            "skipped": skipped,
            "leased": leased,
        }

    def _totals(self, connection: Connection) -> dict[str, int]:
        """What only new, changed and unreadable images change; counted once for each such change."""
        change, known = _change(connection), self._counted
        if known is not None and change is not None and known[0] == change:
            return known[1]
        ok, bad = ~images.c.missing & images.c.error.is_(None), images.c.error.is_not(None)
        counted = connection.execute(
            sa.select(
                sa.func.count().filter(ok),
                sa.func.count(sa.distinct(images.c.patient)).filter(ok),
                sa.func.coalesce(sa.func.sum(images.c.n_slices).filter(ok), 0),
                sa.func.count().filter(bad),
            )
        ).one()
        totals = dict(zip(("images", "patients", "slices", "unreadable_images"), map(int, counted), strict=True))
        self._counted = (change, totals)
        return totals

    def change(self) -> int | None:
        """Another number whenever there are other images, or one became unusable; None before the first."""
        with self.store.read() as connection:
            return _change(connection)

    def _count_anew(self, connection: Connection) -> None:
        """To be called by every transaction that changes which images there are, their slices, or whether they are usable."""
        change = _change(connection)
        connection.execute(meta.delete().where(meta.c.key == _CHANGE))
        connection.execute(meta.insert().values(key=_CHANGE, value=(change or 0) + 1))


def _change(connection: Connection) -> int | None:
    return connection.execute(sa.select(meta.c.value).where(meta.c.key == _CHANGE)).scalar_one_or_none()


def _size(facts: Mapping[str, Any] | RowMapping) -> str:
    return f"{facts['shape']} voxels" if facts["shape"] else f"{facts['n_slices']} slices"


def _mark(target: np.ndarray, at: Mapping[str, tuple[int, int]], pairs: Sequence[Any]) -> None:
    """Set target for each (image id, slice); WHOLE marks all rows of the image."""
    for image_id, index in pairs:
        start, length = at.get(image_id, (0, 0))
        if index == WHOLE or length == 1:
            target[start : start + length] = True
        elif index < length:
            target[start + index] = True
