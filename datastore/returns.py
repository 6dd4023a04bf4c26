"""Labels that come back by the archive: a DICOM SEG that somebody stored there is noticed, matched to its ticket, and recorded.

Two steps, each of which may die anywhere: what is in the archive is noticed, with the position up to which it was looked
through in the same transaction; what was noticed is fetched, checked, and recorded in the transaction of its submission.
"""

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datastore.archive import ArchiveDatastore
from datastore.rules import FINAL, SEG_SUFFIX
from dicom.images import study_of
from dicom.seg_head import SegHead, read_head
from dicom.seg_search import FoundSeg, OrthancFeed, find_seg, search_segs
from loop.errors import BadInput, NextSliceError, NotFound, Unavailable
from loop.returned import BEFORE, ELSEWHERE, OURS, REFUSED, Noticed
from loop.tickets import Ticket

logger = logging.getLogger(__name__)

_MOST_BYTES = 512 << 20
"""Of one SEG."""
_MOST_TRIES = 5
_MOST_WAIT_SECONDS = 60.0
"""For a viewer that is storing through us, and will say whose it is."""


class Returns:
    """Looks for SEGs in the archive of a datastore, in a thread of its own.

    Args:
        feed: of an Orthanc; where none answers, the archive is searched.
        seconds: between two looks.
        recorded: called when labels came in.
    """

    def __init__(
        self,
        datastore: ArchiveDatastore,
        feed: OrthancFeed,
        seconds: float,
        recorded: Callable[[], None] = lambda: None,
    ) -> None:
        self.datastore, self._feed, self._seconds, self._recorded = datastore, feed, seconds, recorded
        self._returned = datastore.loop.returned
        self._looking, self._guard = threading.Lock(), threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="returns")
        self._storing = 0
        self._change: int | None = None
        self._studies: dict[str, list[str]] = {}
        self._trouble: str | None = None
        self._how: str | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it was at is done at the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._feed.close()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def delete(self, sop_uid: str) -> bool:
        """Delete what we stored ourselves; whether it is gone: False where the archive is no Orthanc. Raises Unavailable."""
        if self._returned.get(sop_uid)["state"] != OURS:
            return False
        return self._how == "changes" and self._feed.delete(sop_uid)

    def status(self) -> dict[str, Any]:
        """For people: {"how": "changes", "search" or None before the first look, "trouble": sentence or None}."""
        return {"how": self._how, "trouble": self._trouble}

    @contextmanager
    def storing(self) -> Iterator[None]:
        """While somebody stores through us: what turns up in the archive waits for `stored`, which knows whose it is."""
        with self._guard:
            self._storing += 1
        try:
            yield
        finally:
            with self._guard:
                self._storing -= 1
            self.wake()

    def stored(self, sop_uids: list[str], annotator: str, ticket: str | None) -> None:
        """SEGs that the archive took through us; they are remembered when this returns, and recorded soon."""
        self._returned.notice([Noticed(uid, annotator=annotator or None, ticket=ticket) for uid in sop_uids])
        self.wake()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.look()
            except (Unavailable, BadInput):
                pass  # logged and remembered
            except Exception:  # the next look may do better
                logger.exception("Looking for labels in the archive failed")
            self._wake.wait(self._seconds)

    def look(self) -> None:
        """Notice what is new in the archive, and record what was noticed.

        Raises:
            Unavailable, BadInput: the archive is down, or does not understand; the next look goes on where this one stopped.
        """
        with self._looking:
            try:
                try:
                    self._notice()
                finally:
                    self._record_all()  # what was stored through us needs no search
            except (Unavailable, BadInput) as error:
                if self._trouble != str(error):
                    logger.warning("Labels that come back by the archive wait: %s", error)
                self._trouble = str(error)
                raise
            self._trouble = None

    # --- what is new

    def _notice(self) -> None:
        last = self._feed.last()
        self._look_through(self._returned.position(), last)
        self._how = "search" if last is None else "changes"

    def _look_through(self, position: dict[str, Any] | None, last: int | None) -> None:
        """Notice what is new since the position; `last` is the feed's newest change, None where there is no feed."""
        if position is None:
            # What was there before the campaign answers nothing that it asked.
            there = search_segs(self.datastore.images.archive, {})
            self._returned.notice(_noticed(there), state=BEFORE, position={"change": last})
            return
        change = position["change"]
        if last is not None and change is not None:
            done = False
            while not done and not self._stop.is_set():
                found, change, done = self._feed.since(change)
                if found or change != position["change"]:
                    self._returned.notice(_noticed(found), position={"change": change})
            return
        # A feed that was not there all the time has gaps: searched once more before it is followed.
        found_by_search = search_segs(self.datastore.images.archive, self._returned.known())
        self._returned.notice(_noticed(found_by_search), position={"change": last})

    # --- what was noticed

    def _record_all(self) -> None:
        self._reconsider()
        storing = self._storing  # before the rows are read: who was storing then may not have said whose it is
        for row in self._returned.waiting():
            if self._stop.is_set():
                return
            if storing and row["ticket"] is None and self._is_new(row):
                continue
            self._record(row)

    def _is_new(self, row: dict[str, Any]) -> bool:
        return bool(abs(self.datastore.loop.clock() - row["at"]) < _MOST_WAIT_SECONDS)

    def _reconsider(self) -> None:
        """A SEG may be here before the series it was drawn on is listed."""
        catalogue = self.datastore.loop.catalogue
        change = catalogue.change()
        if change == self._change:
            return
        studies: dict[str, list[str]] = {}
        for row in catalogue.listing():
            studies.setdefault(study_of(row["path"]), []).append(row["id"])
        self._studies = studies
        self._returned.reconsider(studies)
        self._change = change

    def _record(self, row: dict[str, Any]) -> None:
        """Record one, or say why not; raises Unavailable if that cannot be done now."""
        uid = row["sop_uid"]
        place = Path(tempfile.mkdtemp(prefix="returned-", dir=self.datastore.state / "incoming"))
        image_id: str | None = None
        try:
            where = self._where(row)
            images = self._studies.get(where.study_uid, [])
            if not images and row["ticket"] is None:
                self._returned.end(uid, ELSEWHERE, "It is of a study of which there is no image here.")
                return
            file = self._fetch(where, place)
            if file is None:
                return
            head = read_head(file)
            if head.sop_uid != uid:
                raise BadInput(f"The archive gives another instance for it, {head.sop_uid[:70]!r}.")
            if head.ours:
                self._returned.end(uid, OURS)
                return
            if head.automatic and row["ticket"] is None:
                raise BadInput("An algorithm made it, with nobody's hand in it: its segments say AUTOMATIC.")
            image_id = self._image(row, head, images)
            if not any(image_id in of_study for of_study in self._studies.values()):
                reason = f"It was drawn on the series {image_id}, which is none of the images here."
                self._returned.end(uid, ELSEWHERE, reason, image_id)
                return
            self._submit(row, head, image_id, file)
        except Unavailable:
            raise
        except NextSliceError as error:
            self._refuse(uid, str(error), image_id)
        except Exception as error:  # one SEG must not stop the others
            logger.exception("The DICOM SEG %s could not be taken in", uid)
            if self._returned.failed(uid) >= _MOST_TRIES:
                self._refuse(uid, f"It could not be taken in: {type(error).__name__}.", image_id)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _refuse(self, uid: str, reason: str, image_id: str | None) -> None:
        logger.warning("The DICOM SEG %s in the archive is no label: %s", uid, reason)
        self._returned.end(uid, REFUSED, reason, image_id)

    def _where(self, row: dict[str, Any]) -> FoundSeg:
        if row["series_uid"]:
            return FoundSeg(row["study_uid"], row["series_uid"], row["sop_uid"])
        found = find_seg(self.datastore.images.archive, row["sop_uid"])
        if found is None:
            raise NotFound("The archive has it no more.")
        return found

    def _fetch(self, where: FoundSeg, place: Path) -> Path | None:
        """Its file; None if the archive cannot give it now."""
        try:
            files = self.datastore.images.archive.fetch(
                where.study_uid, where.series_uid, place, most=_MOST_BYTES, sop_uid=where.sop_uid
            )
        except BadInput:
            # An archive that is busy may say so of one instance.
            if self._returned.failed(where.sop_uid) >= _MOST_TRIES:
                raise
            return None
        if len(files) != 1:
            raise BadInput(f"The archive gives {len(files)} files for it.")
        return files[0]

    def _image(self, row: dict[str, Any], head: SegHead, images: list[str]) -> str:
        """The image it was drawn on.

        Raises:
            BadInput: it refers to several series, to none that can be told, or to another than its ticket's.
        """
        asked = self.datastore.loop.ticket(row["ticket"]).image_id if row["ticket"] else None
        if len(head.series_uids) > 1:
            raise BadInput(f"It refers to {len(head.series_uids)} series; a label is of one.")
        image_id = next(iter(head.series_uids), None) or asked or self._image_of(head, images)
        if asked and image_id != asked:
            raise BadInput(f"It was drawn on the series {image_id}, but its ticket asks for {asked}.")
        return image_id

    def _image_of(self, head: SegHead, images: list[str]) -> str:
        """By the images it refers to, where it does not name their series."""
        for image_id in images:
            geometry = self.datastore.images.known_geometry(image_id)
            if geometry and not head.sop_uids.isdisjoint(geometry.sop_uids):
                return image_id
        raise BadInput("It does not say on which series it was drawn.")

    def _submit(self, row: dict[str, Any], head: SegHead, image_id: str, file: Path) -> None:
        annotator, ticket = self._whose(row, head, image_id)
        label = file.rename(file.with_name(f"returned{SEG_SUFFIX}"))
        if (number := self.datastore.sent_already(image_id, label)) is not None:
            self._returned.sent_before(row["sop_uid"], image_id, number)
            return
        kept = self.datastore.submit(
            image_id, label, annotator=annotator, tag=FINAL, ticket=ticket, params={"returned": row["sop_uid"]},
            returned=row["sop_uid"],
        )  # fmt: skip
        logger.info("A label of %s came back by the archive: slices %s", image_id, kept["slices"])
        self._recorded()

    def _whose(self, row: dict[str, Any], head: SegHead, image_id: str) -> tuple[str, str | None]:
        """(annotator, ticket): as who stored it through us; else as it says itself; else by the only ticket it can answer."""
        loop = self.datastore.loop
        if row["ticket"]:
            return row["annotator"] or loop.ticket(row["ticket"]).annotator or head.creator, row["ticket"]
        found = loop.tickets_of(image_id)
        still_open = [ticket for ticket in found if ticket.state == "open"]
        name = row["annotator"] or head.creator
        if mine := [ticket for ticket in (*still_open, *reversed(found)) if name and _is_person(ticket, name)]:
            return mine[0].annotator, mine[0].id
        if not row["annotator"] and len(only := still_open or found) == 1:
            return only[0].annotator or head.creator, only[0].id
        return name, None


def _is_person(ticket: Ticket, name: str) -> bool:
    """Doe Jane, as DICOM has it, is Jane Doe."""
    return sorted(ticket.annotator.casefold().split()) == sorted(name.casefold().split())


def _noticed(found: Iterator[FoundSeg] | list[FoundSeg]) -> list[Noticed]:
    return [Noticed(one.sop_uid, one.study_uid, one.series_uid) for one in found]
