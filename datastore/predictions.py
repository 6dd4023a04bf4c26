"""Predictions of new studies, stored in the archive as DICOM SEG: whoever opens the study there finds the model's mask."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from datastore.archive import ArchiveDatastore
from datastore.seg_export import store_prediction
from loop.errors import NextSliceError, Unavailable
from loop.store import images
from models.weights import WeightsFolder

logger = logging.getLogger(__name__)

NOTE = "stored_prediction"
"""Where an image's info says what was stored: {"model", "series", "instance", "at"}."""

_LOOK_SECONDS = 5.0


class StoredPredictions:
    """Stores one prediction of each series that came after the first model and that nobody has annotated, in a thread of its own.

    A later model stores no second one: an archive is no place for every version. What was stored is noted with the image,
    and the same mask has the same UIDs, so that a crash between the two stores nothing twice.

    Args:
        predict: (mask's file, which is deleted here, and the digest of its weights) of an image.
        model: its name.
    """

    def __init__(
        self,
        datastore: ArchiveDatastore,
        weights: WeightsFolder,
        predict: Callable[[str], tuple[Path, str]],
        model: str,
        seconds: float = _LOOK_SECONDS,
    ) -> None:
        self.datastore, self._weights, self._predict = datastore, weights, predict
        self._model, self._seconds = model, seconds
        self._refused: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="predictions")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it was at is done at the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except Unavailable as error:
                logger.warning("Predictions of new series wait: %s", error)
            except Exception:  # the next look may do better
                logger.exception("Storing predictions failed")

    def look(self) -> None:
        """Store what is due; raises Unavailable while the archive is down: the rest is done at the next look."""
        for image_id in self.due():
            if self._stop.is_set():
                return
            try:
                self._store(image_id)
            except Unavailable:
                raise
            except NextSliceError as error:
                self._refused.add(image_id)
                logger.warning("No prediction of %s is stored: %s", image_id, error)

    def due(self) -> list[str]:
        """Images that wait for their prediction, those that came first, first."""
        versions = self._weights.cards()
        if not versions:
            return []
        query = (
            sa.select(images.c.id, images.c.info)
            .where(
                images.c.added_at > float(versions[0]["published_at"]),
                ~images.c.missing,
                images.c.error.is_(None),
                images.c.n_labeled == 0,
            )
            .order_by(images.c.row)
        )
        with self.datastore.loop.store.read() as connection:
            found = connection.execute(query).all()
        return [row.id for row in found if NOTE not in row.info and row.id not in self._refused]

    def _store(self, image_id: str) -> None:
        at = self.datastore.loop.clock()
        predict = partial(self._predict, image_id)
        written, digest = store_prediction(self.datastore, image_id, self._model, predict, at, "labelmap")
        note: dict[str, Any] = {"model": digest, "series": written.series_uid, "instance": written.sop_uid, "at": at}
        self.datastore.loop.catalogue.update_info(image_id, {NOTE: note})
        logger.info("The prediction of %s is in the archive as series %s", image_id, written.series_uid)
