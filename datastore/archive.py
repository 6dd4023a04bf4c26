"""The series of a DICOMweb archive as images: found by search, fetched when somebody or something looks at them.

The id of an image is its SeriesInstanceUID, and its patient the PatientID. Before a series is fetched, its number of slices is
its number of instances; what it really is, or why it cannot be used, is known after. In the state folder: `archive` with the
volumes, `labels` with the composite masks. Nothing in the archive is ever changed.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from sqlalchemy.engine import RowMapping

from datastore.dicom_label import DicomLabel, read_dicom_label
from datastore.served import ServedDatastore, check_usable
from datastore.volume_io import Header
from dicom.archive import ListedSeries, is_uid
from dicom.images import ArchiveImages, path_of, study_of
from loop.catalogue import Found
from loop.errors import BadInput, Conflict, Forbidden, Unavailable
from loop.rounds import Loop

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 5.0
_REST = 10.0
"""A search that took long is not made again before this many times as long."""
_AGAIN_SECONDS, _AGAIN_AT_MOST_SECONDS = 60.0, 3600.0
"""A series that the archive did not give is tried again after so long, then after twice as long, up to the latter."""


class ArchiveDatastore(ServedDatastore):
    """Images of an archive, with the loop's records of them.

    Args:
        images: fetches and keeps their volumes.
        state: where submissions and composite masks are kept.
        clock: seconds since the epoch.
    """

    def __init__(self, images: ArchiveImages, state: Path, loop: Loop, clock: Callable[[], float] = time.time) -> None:
        name, url = urlsplit(images.archive.url).netloc, images.archive.url
        super().__init__(
            images.folder, state / "labels", state, loop, clock, name=name, description=f"series of the archive {url}"
        )
        self.images = images
        self._looking = threading.Lock()
        self._trouble: str | None = None
        self._answered_at: float | None = None
        self._rest_until = float("-inf")
        self._again: dict[str, tuple[float | None, float]] = {}
        """Of series that were not given: when they are tried again (None: they were), and the pause before that."""

    # --- what is there

    def refresh(self) -> None:
        """Search the archive now, and take in what changed. No series is fetched.

        Raises:
            Unavailable, BadInput: the archive is down, or does not understand the search; the records stay as they are.
        """
        with self._looking:
            began = time.monotonic()
            try:
                self._take_in()
            except (Unavailable, BadInput) as error:
                if self._trouble != str(error):
                    logger.warning("%s", error)
                self._trouble = str(error)
                raise
            if self._trouble:
                logger.info("The archive %s is back", self.images.archive.url)
            self._trouble, self._answered_at = None, self._clock()
            self._rest_until = time.monotonic() + _REST * (time.monotonic() - began)
            self._try_again()
        self.notice_behind()

    def look_for(self, study_uid: str, series_uid: str = "") -> list[str]:
        """Search the archive for one study, or one series, now, and take in what changed; the ids of its series that are taken.

        An archive that tells of what comes in need not wait for the next search of everything, nor bear one. What it could
        not give before is asked for again.

        Args:
            study_uid, series_uid: either may be empty, not both.

        Raises:
            BadInput: neither is named, or not by a UID. Unavailable: the archive is down; the records stay as they are.
        """
        check_uids(study_uid, series_uid)
        if not (study_uid or series_uid):
            raise BadInput("Name a study or a series: StudyInstanceUID, SeriesInstanceUID or both.")
        with self._looking:
            there = self._take_in(study_uid, series_uid)
            self.loop.catalogue.try_again(there, self._clock())
        self.notice_behind()
        return sorted(there)

    def _take_in(self, study_uid: str = "", series_uid: str = "") -> list[str]:
        """Search for a series, those of a study, or all, and bring the records up to what is found: its ids."""

        def wanted(study: str, series: str) -> bool:
            return study_uid in ("", study) and series_uid in ("", series)

        config = self.loop.config
        named = (("StudyInstanceUID", study_uid), ("SeriesInstanceUID", series_uid))
        conditions = [*parse_conditions(config.archive_conditions), *((key, uid) for key, uid in named if uid)]
        there = {
            series.series_uid: series
            for series in self.images.archive.series(config.archive_modalities, conditions)
            # Some archives leave conditions that they do not know aside, and list everything.
            if wanted(series.study_uid, series.series_uid)
        }
        known = self.loop.catalogue.versions()
        changed = [_found(series) for uid, series in there.items() if known.get(uid) != _version(series)]
        gone = [uid for uid, version in known.items() if uid not in there and wanted(version.rpartition("-")[0], uid)]
        self.loop.catalogue.sync(changed, sorted(gone), self._clock())
        return list(there)

    def _try_again(self) -> None:
        """Let the series be asked for again that the archive did not give, each when its pause is over."""
        now, due = self._clock(), []
        for image_id in self.loop.catalogue.not_given():
            at, pause = self._again.get(image_id, (now + _AGAIN_SECONDS, _AGAIN_SECONDS))
            if at is None:  # it was tried, and was not given again
                pause = min(2 * pause, _AGAIN_AT_MOST_SECONDS)
                at = now + pause
            if at <= now:
                due.append(image_id)
            self._again[image_id] = (None if at <= now else at, pause)
        self.loop.catalogue.try_again(due, now)

    def look(self) -> None:
        """As `refresh`, in a thread of its own, whose end is awaited for some seconds only; trouble is told by `status`."""
        if self._looking.locked() or time.monotonic() < self._rest_until:
            return

        def run() -> None:
            try:
                self.refresh()
            except (Unavailable, BadInput):
                return  # logged and remembered
            except Exception:  # the next look may do better
                logger.exception("Looking into the archive failed")

        thread = threading.Thread(target=run, daemon=True, name="archive-look")
        thread.start()
        thread.join(_FIRST_LOOK_SECONDS)

    def source(self) -> dict[str, Any]:
        """For people: {"archive": address, "ok": it answered the last search, "trouble": sentence or None, "answered_at"}."""
        return {
            "archive": self.images.archive.url,
            "ok": self._trouble is None and self._answered_at is not None,
            "trouble": self._trouble,
            "answered_at": self._answered_at,
        }

    # --- images

    def image_path(self, image_id: str) -> Path:
        """The image's volume, fetched now if it is not here.

        Raises:
            NotFound: no such image. Conflict: it cannot be used (the reason is told). Unavailable: the archive is down.
        """
        return self.readable_path(image_id)

    def _path(self, image: RowMapping) -> Path:
        try:
            return self.images.fetch(image["id"])
        except BadInput as error:
            raise Conflict(f"The image {image['id']!r} cannot be used: {error}") from None

    def _header(self, image: RowMapping) -> Header:
        check_usable(image)
        if image["shape"] is None:
            self._path(image)
            image = self.loop.catalogue.image(image["id"])
        return Header(tuple(image["shape"]), np.array(image["affine"]))

    def _read_dicom(self, image_id: str, file: Path) -> DicomLabel:
        config = self.loop.config
        return read_dicom_label(file, self.images.geometry(image_id), config.viewer_values(), config.unlabeled())

    def viewer_facts(self, image: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
        """DICOM's names of the series, its study and its patient, for OHIF."""
        told = {key: image["info"].get(key, "") for key in ("Modality", "StudyDate", "StudyTime", "SeriesDescription")}
        study = study_of(str(image["path"]))
        retrieve = image["info"].get("RetrieveURL") or f"{self.images.archive.url}/studies/{study}/series/{image['id']}"
        return {**told, "StudyInstanceUID": study, "SeriesInstanceUID": image["id"], "RetrieveURL": retrieve}

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Never: images come from the archive. Raises Forbidden."""
        raise Forbidden("Images come from the archive here: send the series to the archive, and it is found.")


def check_uids(study_uid: str, series_uid: str) -> None:
    """Raise BadInput unless each is a UID, or empty."""
    for key, uid in (("StudyInstanceUID", study_uid), ("SeriesInstanceUID", series_uid)):
        if uid and not is_uid(uid):
            raise BadInput(f"{key} must be a UID (digits and dots, at most 64), got {uid[:80]!r}.")


def parse_conditions(text: str) -> list[tuple[str, str]]:
    """The conditions of a search, written as in an address: StudyDate=20240101-&PatientID=A*.

    Raises:
        BadInput: not that, or one that is ours to say.
    """
    try:
        found = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise BadInput(
            f"archive_conditions must be like StudyDate=20240101-&PatientID=A*, got {text[:200]!r}."
        ) from None
    taken = [key for key, _ in found if key.lower() in ("limit", "offset", "includefield", "modality")]
    if taken:
        raise BadInput(f"archive_conditions must not set {taken[0]}; modalities are set by archive_modalities.")
    return found


def _version(series: ListedSeries) -> str:
    """Another one when instances come or go: an archive tells no more in its list."""
    return f"{series.study_uid}-{series.instances}"


def _found(series: ListedSeries) -> Found:
    return Found(
        series.series_uid,
        path_of(series.study_uid, series.series_uid),
        _version(series),
        patient=series.patient_id or series.study_uid,
        n_slices=max(series.instances, 1),
        info=dict(series.facts),
    )
