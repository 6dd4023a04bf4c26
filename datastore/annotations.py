"""Everything annotators sent, kept for ever, and the composite masks that follow from it; whatever the images come from."""

import hashlib
import logging
import os
import re
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.engine import RowMapping

from datastore.dicom_label import DicomLabel
from datastore.labels import as_viewers_draw, read_label, voxels_of, with_strokes
from datastore.rules import FINAL, ORIGINAL, SEG_SUFFIX, TAGS, check_slices, check_tag, label_info, label_suffix
from datastore.volume_io import Header, write_volume
from loop.durable import atomic, place_durably, sync_file
from loop.errors import BadInput, NextSliceError, NotFound
from loop.rounds import Loop
from loop.submitted import Submission

logger = logging.getLogger(__name__)

_MOST_IN_STORE = 1 << 20
"""Bytes of a submission that is committed with its record and filed later; for a larger one the sync is not what takes long."""
_FILED_AT_ONCE = 50
_QUIET_SECONDS = 0.3
_MASKS_AT_HAND = 256 << 20
"""Bytes of masks kept until they are composed; others are read again."""


class Annotations(ABC):
    """Submissions and composite masks.

    Args:
        labels: folder of the composite masks.
        state: where submissions are kept.
        clock: seconds since the epoch.
    """

    def __init__(self, labels: Path, state: Path, loop: Loop, clock: Callable[[], float] = time.time) -> None:
        self.labels, self.state, self.loop, self._clock = labels, state, loop, clock
        self._locks: dict[str, threading.RLock] = {}
        self._uncomposed: dict[str, dict[int, npt.NDArray[np.uint8]]] = {}
        self._unsettled: dict[str, int] = {}
        self._saved_at, self._at_hand = float("-inf"), 0
        self._locks_guard, self._filing = threading.Lock(), threading.Lock()
        for folder in (state, state / "submissions", state / "incoming"):
            folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _header(self, image: RowMapping) -> Header:
        """Shape and affine of an image; raises Conflict with the reason if it cannot be used."""

    def notice_behind(self) -> None:
        """Compose anew what another process saved (a batch inference), or what was saved while the image was unreadable."""
        behind = self.loop.catalogue.behind()
        with self._locks_guard:
            for image_id in behind:
                self._uncomposed.setdefault(image_id, {})

    def submit(
        self,
        image_id: str,
        file: Path,
        *,
        annotator: str = "",
        tag: str = FINAL,
        ticket: str | None = None,
        slices: Sequence[int] | None = None,
        params: Mapping[str, Any] | None = None,
        returned: str = "",
    ) -> dict[str, Any]:
        """Keep a label for ever, and count its slices as annotated.

        The label is durable when this returns; the composite masks are renewed by `settle`, or when somebody wants them.
        Slices: those named; else those the ticket asked for; else the whole volume, of scribbles its slices with a stroke.
        Of a DICOM SEG: those named; else those the ticket asked for and those painted.
        What a named ticket was answered with last counts once, however often it is sent.

        Args:
            file: what was uploaded; a copy is kept as it is.
            tag: "final" is an annotation; "original" a start mask that annotates nothing.
            returned: SOP instance UID under which it was noticed in the archive.

        Returns:
            {"submission": number, "slices": annotated slices, "ticket": the ticket it answered or None}

        Raises:
            BadInput: not a label for this image (the reason is told), or slices out of range.
            NotFound: no such image or ticket. Conflict: the ticket is for another image, or what was noticed is recorded already.
        """
        check_tag(tag)
        image = self.loop.catalogue.image(image_id)
        params = dict(params or {})
        header = self._header(image)
        sent = self._read_dicom(image_id, file) if label_suffix(file.name) == SEG_SUFFIX else None
        mask = self._read(file, header, params) if sent is None else sent.mask
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        named = ticket is not None
        with self._lock(image_id):
            if tag == ORIGINAL:
                slices = []
            elif slices is None and sent is not None:
                asked, ticket = self.loop.asked_slices(image, annotator, ticket)
                slices = self._answered(image_id, header, sent, digest, asked if ticket else [])
            elif slices is None:
                slices, ticket = self.loop.asked_slices(image, annotator, ticket)
                if ticket is None and self._unlabeled is not None:
                    slices = with_strokes(mask, image["axis"], self._unlabeled)
                    if not slices:
                        raise BadInput("The label has no stroke. Draw some, or name the slices in annotated_slices.")
            else:
                slices = check_slices(slices, image["n_slices"])
                _, ticket = self.loop.asked_slices(image, annotator, ticket)
            if named and ticket is not None:
                again = self.loop.submitted.repeated(
                    image_id, ticket, digest=digest, slices=slices, params=params, tag=tag
                )
                if again is not None:
                    return {"submission": again, "slices": list(slices), "ticket": ticket}
            kept, unfiled = self._keep(file, image_id, content, digest)
            number = self.loop.tell(
                image_id,
                Submission(
                    annotator=annotator, digest=digest, file=kept, slices=slices, ticket=ticket, params=params, tag=tag,
                    voxels=voxels_of(mask, image["axis"], slices, len(self.loop.config.labels) + 1), content=unfiled,
                    returned=returned,
                ),
            )  # fmt: skip
            self._compose_later(image_id, number, mask)
        return {"submission": number, "slices": list(slices), "ticket": ticket}

    def sent_already(self, image_id: str, file: Path) -> int | None:
        """The submission that was sent as this very file; None if there is none."""
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        sent = (
            row["id"]
            for row in self.loop.submitted.submissions(image_id)
            if (row["digest"], row["tag"]) == (digest, FINAL)
        )
        return next(sent, None)

    def _keep(self, file: Path, image_id: str, content: bytes, digest: str) -> tuple[str, bytes | None]:
        """(the submission's path relative to the state folder, what is still to be written there)."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id)[:80]
        relative = f"submissions/{day}/{name}-{time.time_ns()}-{digest[:12]}{label_suffix(file.name)}"
        if len(content) <= _MOST_IN_STORE:
            return relative, content
        target = self.state / relative
        self._day_folder(target.parent)
        place_durably(file, target, own=self._is_own(file))
        return relative, None

    def _day_folder(self, folder: Path) -> None:
        """A folder a day: a new folder costs a sync of its own, and one for every image would cost it at nearly every save."""
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            sync_file(folder.parent)

    def _file(self) -> None:
        """Write the submissions that are in the store only into their files."""
        with self._filing:
            while found := self.loop.submitted.unfiled(_FILED_AT_ONCE):
                folders = set()
                for _, relative, content in found:
                    target = self.state / relative
                    self._day_folder(target.parent)
                    with atomic(target, sync_folder=False) as temporary:
                        temporary.write_bytes(content)
                    folders.add(target.parent)
                for folder in folders:
                    sync_file(folder)
                self.loop.submitted.filed([number for number, _, _ in found])

    def _is_own(self, file: Path) -> bool:
        """Whether a file is an upload or a result of ours, which nobody else keeps."""
        return file.is_relative_to(self.state / "incoming")

    def _compose_later(self, image_id: str, number: int, mask: npt.NDArray[np.uint8]) -> None:
        """Leave the composite to `settle`, with the mask at hand while there is room for it."""
        with self._locks_guard:
            self._saved_at = self._clock()
            waiting = self._uncomposed.setdefault(image_id, {})
            if self._at_hand + mask.nbytes <= _MASKS_AT_HAND:
                waiting[number] = mask
                self._at_hand += mask.nbytes

    def _compose_now(self, image_id: str) -> None:
        with self._lock(image_id):
            with self._locks_guard:
                fresh = self._uncomposed.pop(image_id, {})
                self._at_hand -= sum(mask.nbytes for mask in fresh.values())
            image = self.loop.catalogue.image(image_id)
            self._compose(image, self._header(image), fresh)

    def _compose(self, image: RowMapping, header: Header, fresh: Mapping[int, npt.NDArray[np.uint8]]) -> None:
        """Write both composite masks: each slice from the newest submission that annotated it.

        `original` also shows the newest start mask under them; `final` is annotation only. Of scribbles, `final` has the
        unlabelled value where nobody drew, and `original` is as viewers draw: 0 there.

        Args:
            fresh: masks at hand by submission, so that they need not be read again.
        """
        image_id = str(image["id"])
        sent = {row["id"]: row for row in self.loop.submitted.submissions(image_id)}
        counts = self.loop.submitted.labeled_slices(image_id)
        start = max((number for number, row in sent.items() if row["tag"] == ORIGINAL), default=None)
        shown = {*counts.values(), *([start] if start else [])}
        masks = {n: fresh[n] if n in fresh else self._submitted(sent[n], header) for n in shown}
        mark = self._unlabeled
        final = np.full(header.shape, mark or 0, np.uint8)
        original = np.zeros(header.shape, np.uint8) if start is None else masks[start].copy()
        if mark is not None:
            original[original == mark] = 0
        axis = int(image["axis"])
        for index, number in counts.items():
            at = (slice(None),) * axis + (index,)
            final[at] = masks[number][at]
            original[at] = final[at] if mark is None else as_viewers_draw(final[at], mark)
        if counts:
            write_volume(self.label_path(image_id, FINAL), final, header.affine, durable=False)
        self._write_original(image_id, original, header, same=start is None and bool(counts) and mark is None)
        with self._locks_guard:
            self._unsettled[image_id] = max(sent, default=0)

    def quiet(self) -> bool:
        """Whether nobody saved just now: what `settle` writes and syncs would make the next save wait."""
        return abs(self._clock() - self._saved_at) >= _QUIET_SECONDS

    def settle(self) -> None:
        """Give submissions their files, renew the composite masks of images with new ones, and make both durable.

        Apart from the answer to a save, which need not wait for it: what was sent is in the store, the masks follow from
        it, and a crash before this only means that the next start does it.
        """
        self._file()
        with self._locks_guard:
            uncomposed = list(self._uncomposed)
        for image_id in uncomposed:
            try:
                self._compose_now(image_id)
            except NextSliceError as error:  # its image is gone or changed; when it is back, the next reader composes
                logger.warning("The composite mask of %s was not renewed: %s", image_id, error)
        with self._locks_guard:
            settling = dict(self._unsettled)
        masks = [self.label_path(image_id, tag) for image_id in settling for tag in TAGS]
        # Both tags are mostly two names of one file, and most images share a folder: each is synced once.
        there = {path.stat().st_ino: path for path in masks if path.is_file()}
        for path in (*there.values(), *{path.parent for path in masks if path.is_file()}):
            sync_file(path)
        self.loop.submitted.composed(settling)
        with self._locks_guard:
            for image_id, number in settling.items():
                if self._unsettled.get(image_id) == number:
                    del self._unsettled[image_id]

    def _is_behind(self, image: RowMapping) -> bool:
        """Whether the composite masks on disk lack the newest submission."""
        with self._locks_guard:
            written = self._unsettled.get(str(image["id"]), 0)
        return bool(max(image["composite"], written) < image["submission"])

    def _write_original(self, image_id: str, mask: npt.NDArray[np.uint8], header: Header, *, same: bool) -> None:
        """As a second name of the final mask where both are the same."""
        target = self.label_path(image_id, ORIGINAL)
        if not same:
            write_volume(target, mask, header.affine, durable=False)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{time.time_ns()}")
        os.link(self.label_path(image_id, FINAL), beside)
        os.replace(beside, target)

    def _submitted(self, row: Mapping[str, Any], header: Header) -> npt.NDArray[np.uint8]:
        content = self.loop.submitted.content(row["id"])
        if content is None:
            return self._mask_of(row, self.state / row["file"], header)
        copy = self.state / "incoming" / f"{time.time_ns()}-{Path(row['file']).name}"
        copy.write_bytes(content)
        try:
            return self._mask_of(row, copy, header)
        finally:
            copy.unlink()

    def _mask_of(self, row: Mapping[str, Any], file: Path, header: Header) -> npt.NDArray[np.uint8]:
        if label_suffix(file.name) == SEG_SUFFIX:
            return self._read_dicom(row["image_id"], file).mask
        return self._read(file, header, row["params"])

    def _read_dicom(self, image_id: str, file: Path) -> DicomLabel:
        """A DICOM SEG as a label of the image; raises BadInput if it is none."""
        raise BadInput("A DICOM SEG can be a label of images of an archive only; send an image file, such as .nii.gz.")

    def _answered(
        self, image_id: str, header: Header, sent: DicomLabel, digest: str, asked: Sequence[int]
    ) -> list[int]:
        """The slices that a DICOM SEG which names none answers for.

        Viewers send back the start mask and the others' slices too. A painted slice that was not asked for and is as somebody
        sent it before answers for nothing: it may be a model's, or older than what is there now. The same file again is no
        other label than the first time.
        """
        extra = set(sent.painted) - set(asked)
        for row in self.loop.submitted.submissions(image_id) if extra else []:
            if row["digest"] == digest:
                continue
            before = self._submitted(row, header)
            extra = {k for k in extra if not np.array_equal(before[:, :, k], sent.mask[:, :, k])}
        return sorted({*asked, *extra}) or list(sent.painted or sent.written)

    def _read(self, file: Path, header: Header, params: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        return read_label(file, header, self.loop.config.label_values(), label_info(params), self._unlabeled)

    @property
    def _unlabeled(self) -> int | None:
        return self.loop.config.unlabeled()

    def _names(self, tag: str) -> dict[str, int]:
        """What the values of a composite mask are called."""
        if tag == ORIGINAL or self._unlabeled is None:
            return self.loop.config.viewer_values()
        return {**self.loop.config.label_values(), "unlabelled": self._unlabeled}

    def label_path(self, label_id: str, tag: str) -> Path:
        """Where the composite mask of an image is (or will be)."""
        return self.labels / tag / f"{label_id}.nii.gz"

    def label_file(self, label_id: str, tag: str) -> Path:
        """The composite mask, made anew where a crash left it behind the submissions.

        Raises:
            NotFound: no such image, or nothing was submitted for it. BadInput: no such tag.
        """
        check_tag(tag)
        image = self.loop.catalogue.image(label_id)
        path = self.label_path(label_id, tag)
        if image["submission"] and (self._is_behind(image) or not path.is_file()):
            self._compose_now(label_id)
        if not path.is_file():
            raise NotFound(f"There is no label {tag!r} of {label_id!r} yet.")
        return path

    def repair(self) -> list[str]:
        """File every submission and bring every composite up to them, after a crash; the ids that were behind."""
        self._file()
        behind = self.loop.catalogue.behind()
        for image_id in behind:
            self.label_file(image_id, ORIGINAL)
        self.settle()
        shutil.rmtree(self.state / "incoming", ignore_errors=True)
        (self.state / "incoming").mkdir(exist_ok=True)
        return behind

    def _lock(self, image_id: str) -> threading.RLock:
        with self._locks_guard:
            return self._locks.setdefault(image_id, threading.RLock())
