"""A local folder of images behind MONAI Label's Datastore: images are never changed, labels are kept as submissions.

In the studies folder: the images (sub-folders too), `labels/final` and `labels/original` with the composite masks, and
`.nextslice` (or the configured state folder) with the records and every submission as it was sent. Records are the
Loop's; this class keeps files and looks after the door.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from sqlalchemy.engine import RowMapping

from datastore.labels import as_viewers_draw, read_label, voxels_of, with_strokes
from datastore.volume_io import SUFFIXES, Header, read_header, read_volume, suffix_of, write_volume
from loop.catalogue import Found
from loop.config import DATASET_FILE
from loop.durable import atomic, sync_file
from loop.errors import BadInput, Conflict, Forbidden, NextSliceError, NotFound
from loop.rounds import Loop, Submission

logger = logging.getLogger(__name__)

FINAL, ORIGINAL = "final", "original"
TAGS = (FINAL, ORIGINAL)

_OWN_FOLDERS = {"labels", "lost+found"}
_ID_LENGTH = 200
_MOST_IN_STORE = 1 << 20
"""Bytes of a submission that is committed with its record and filed later; for a larger one the sync is not what takes long."""
_FILED_AT_ONCE = 50
_QUIET_SECONDS = 0.3
_MASKS_AT_HAND = 256 << 20
"""Bytes of masks kept until they are composed; others are read again."""


class FolderDatastore(Datastore):
    """Images of a folder, with the loop's records of them.

    Args:
        root: the studies folder.
        state: where submissions are kept.
        clock: seconds since the epoch.
    """

    def __init__(self, root: Path, state: Path, loop: Loop, clock: Callable[[], float] = time.time) -> None:
        self.root, self.state, self.loop, self._clock = root.resolve(), state, loop, clock
        inside = state == self.root / ".nextslice"
        self.labels = (self.root if inside else state) / "labels"
        self._locks: dict[str, threading.RLock] = {}
        self._uncomposed: dict[str, dict[int, npt.NDArray[np.uint8]]] = {}
        self._unsettled: dict[str, int] = {}
        self._saved_at, self._at_hand = float("-inf"), 0
        self._locks_guard, self._scan_guard, self._filing = threading.Lock(), threading.Lock(), threading.Lock()
        self._name, self._description = self.root.name, "images of a local folder"
        for folder in (state, state / "submissions", state / "incoming"):
            folder.mkdir(parents=True, exist_ok=True)

    # --- images

    def refresh(self) -> None:
        """Take in what changed in the folder. Known, unchanged images are not opened."""
        with self._scan_guard:
            there = self._scan()
            known = self.loop.catalogue.versions()
            changed = [image_id for image_id, (_, version) in there.items() if known.get(image_id) != version]
            found = [self._found(image_id, *there[image_id]) for image_id in changed]
            self.loop.catalogue.sync(found, sorted(set(known) - set(there)), self._clock())
        # Saved by another process, such as a batch inference, or while the image could not be read.
        behind = self.loop.catalogue.behind()
        with self._locks_guard:
            for image_id in behind:
                self._uncomposed.setdefault(image_id, {})

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

    def readable_path(self, image_id: str) -> Path:
        """As `image_path`, for reading its voxels; raises Conflict with the reason if they cannot be."""
        return self._readable(self.loop.catalogue.image(image_id))

    def _readable(self, image: RowMapping) -> Path:
        if image["error"]:
            raise Conflict(f"The image {image['id']!r} cannot be used: {image['error']}")
        return self._path(image)

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
            _place_durably(source, target, own=self._is_own(source))
            self.refresh()
        if image_info:
            self.update_image_info(image_id, dict(image_info))
        return image_id

    def _scan_one(self, target: Path) -> set[str]:
        """Ids of the images beside a target, whatever their suffix."""
        if not target.parent.is_dir():
            return set()
        return {self._id_of(path) for path in target.parent.iterdir() if path.name.lower().endswith(SUFFIXES)}

    def remove_image(self, image_id: str) -> None:
        """Never: images are the user's.

        Raises:
            NotFound: no such image. Forbidden: otherwise.
        """
        self.loop.catalogue.image(image_id)
        raise Forbidden(
            f"The image {image_id!r} was not deleted: images are never changed here. Remove the file yourself."
        )

    def get_image(self, image_id: str, params: Any = None) -> bytes:
        return self.image_path(image_id).read_bytes()

    def get_image_uri(self, image_id: str) -> str:
        return str(self.image_path(image_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return dict(self.loop.catalogue.image(image_id)["info"])

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        taken = [key for key in info if key in map(_label_key, TAGS)]
        if taken:
            raise BadInput(f"{taken[0]!r} is where the notes about that label are kept: PUT /datastore/label/info.")
        self.loop.catalogue.update_info(image_id, info)

    def list_images(self) -> list[str]:
        return sorted(self.loop.catalogue.versions())

    # --- labels

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
    ) -> dict[str, Any]:
        """Keep a label for ever, and count its slices as annotated.

        The label is durable when this returns; the composite masks are renewed by `settle`, or when somebody wants them.
        Slices: those named; else those the ticket asked for; else the whole volume, of scribbles its slices with a stroke.
        What a named ticket was answered with last counts once, however often it is sent.

        Args:
            file: what was uploaded; a copy is kept as it is.
            tag: "final" is an annotation; "original" a start mask that annotates nothing.

        Returns:
            {"submission": number, "slices": annotated slices, "ticket": the ticket it answered or None}

        Raises:
            BadInput: not a label for this image (the reason is told), or slices out of range.
            NotFound: no such image or ticket. Conflict: the ticket is for another image.
        """
        check_tag(tag)
        image = self.loop.catalogue.image(image_id)
        params = dict(params or {})
        header = self._header(image)
        mask = self._read(file, header, params)
        named = ticket is not None
        with self._lock(image_id):
            if tag == ORIGINAL:
                slices = []
            elif slices is None:
                slices, ticket = self.loop.asked_slices(image, annotator, ticket)
                if ticket is None and self._unlabeled is not None:
                    slices = with_strokes(mask, image["axis"], self._unlabeled)
                    if not slices:
                        raise BadInput("The label has no stroke. Draw some, or name the slices in annotated_slices.")
            else:
                slices = check_slices(slices, image["n_slices"])
                _, ticket = self.loop.asked_slices(image, annotator, ticket)
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if named and ticket is not None:
                again = self.loop.repeated(image_id, ticket, digest=digest, slices=slices, params=params, tag=tag)
                if again is not None:
                    return {"submission": again, "slices": list(slices), "ticket": ticket}
            kept, unfiled = self._keep(file, image_id, content, digest)
            number = self.loop.tell(
                image_id,
                Submission(
                    annotator=annotator, digest=digest, file=kept, slices=slices, ticket=ticket, params=params, tag=tag,
                    voxels=voxels_of(mask, image["axis"], slices, len(self.loop.config.labels) + 1), content=unfiled,
                ),
            )  # fmt: skip
            self._compose_later(image_id, number, mask)
        return {"submission": number, "slices": list(slices), "ticket": ticket}

    def _keep(self, file: Path, image_id: str, content: bytes, digest: str) -> tuple[str, bytes | None]:
        """(the submission's path relative to the state folder, what is still to be written there)."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id)[:80]
        relative = f"submissions/{day}/{name}-{time.time_ns()}-{digest[:12]}{suffix_of(file.name)}"
        if len(content) <= _MOST_IN_STORE:
            return relative, content
        target = self.state / relative
        self._day_folder(target.parent)
        _place_durably(file, target, own=self._is_own(file))
        return relative, None

    def _day_folder(self, folder: Path) -> None:
        """A folder a day: a new folder costs a sync of its own, and one for every image would cost it at nearly every save."""
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            sync_file(folder.parent)

    def _file(self) -> None:
        """Write the submissions that are in the store only into their files."""
        with self._filing:
            while found := self.loop.unfiled(_FILED_AT_ONCE):
                folders = set()
                for _, relative, content in found:
                    target = self.state / relative
                    self._day_folder(target.parent)
                    with atomic(target, sync_folder=False) as temporary:
                        temporary.write_bytes(content)
                    folders.add(target.parent)
                for folder in folders:
                    sync_file(folder)
                self.loop.filed([number for number, _, _ in found])

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
        sent = {row["id"]: row for row in self.loop.submissions(image_id)}
        counts = self.loop.labeled_slices(image_id)
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
        self.loop.composed(settling)
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
        content = self.loop.content(row["id"])
        if content is None:
            return self._read(self.state / row["file"], header, row["params"])
        copy = self.state / "incoming" / f"{time.time_ns()}-{Path(row['file']).name}"
        copy.write_bytes(content)
        try:
            return self._read(copy, header, row["params"])
        finally:
            copy.unlink()

    def _read(self, file: Path, header: Header, params: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        return read_label(file, header, self.loop.config.label_values(), _label_info(params), self._unlabeled)

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

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """MONAI Label's way to `submit`, for its batch inference."""
        tag = label_tag.value if isinstance(label_tag, DefaultLabelTag) else label_tag
        self.submit(image_id, Path(label_filename), tag=tag, params=label_info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Never: a label may be a person's work.

        Raises:
            NotFound: no such label. Forbidden: otherwise.
        """
        self.label_file(label_id, label_tag)
        raise Forbidden(
            f"The label of {label_id!r} was not deleted: labels are kept. Submit the slices again to correct them."
        )

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> bytes:
        return self.label_file(label_id, label_tag).read_bytes()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.label_file(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        image = self.loop.catalogue.image(image_id)
        tags = ([FINAL] if image["n_labeled"] else []) + ([ORIGINAL] if image["submission"] else [])
        return dict.fromkeys(tags, image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What viewers need to read the mask: {"params": {"label_names": {name: value}}}, and what was written to it."""
        self.label_file(label_id, label_tag)
        info = self.loop.catalogue.image(label_id)["info"].get(_label_key(label_tag), {})
        return {**info, "params": {**info.get("params", {}), "label_names": self._names(label_tag)}}

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        if not isinstance(info.get("params", {}), dict):
            raise BadInput(f"params must be a JSON object, got {type(info['params']).__name__}.")
        self.label_file(label_id, label_tag)
        self.loop.catalogue.update_info(label_id, {_label_key(label_tag): info})

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return self.loop.catalogue.ids(labeled=True)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return self.loop.catalogue.ids(labeled=False)

    # --- the whole

    def name(self) -> str:
        return self._name

    def set_name(self, name: str) -> None:
        self._name = name

    def description(self) -> str:
        return self._description

    def set_description(self, description: str) -> None:
        self._description = description

    def datalist(self) -> list[dict[str, Any]]:
        """Image and composite mask of every image with annotated slices, and which slices those are."""
        return [
            {
                "image": str(self.root / row["path"]),
                "label": str(self.label_file(row["id"], FINAL)),
                "annotated_slices": row["slices"],
                "axis": row["axis"],
            }
            for row in self.loop.labeled_images()
        ]

    def status(self) -> dict[str, Any]:
        counts = self.loop.catalogue.counts()
        return {
            "total": counts["images"],
            "completed": counts["labeled_images"],
            "label_tags": {FINAL: counts["labeled_images"]},
            "train": [],
            **{key: counts[key] for key in ("slices", "labeled_slices", "unreadable_images")},
        }

    def json(self) -> dict[str, Any]:
        """Every image with its labels, in the form Slicer reads: the order of label_names is that of the values."""
        objects, infos = {}, {tag: {"params": {"label_names": self._names(tag)}} for tag in TAGS}
        for row in self.loop.catalogue.listing():
            tags = ([FINAL] if row["n_labeled"] else []) + ([ORIGINAL] if row["submission"] else [])
            objects[row["id"]] = {
                "image": {"ext": suffix_of(row["path"]), "info": row["info"]},
                "labels": {tag: {"ext": ".nii.gz", "info": infos[tag]} for tag in tags},
            }
        return {"name": self._name, "description": self._description, "objects": objects}

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP with the annotated images, their composite masks, and which slices are annotated; removed by the caller."""
        self.settle()
        target = self.state / "incoming" / f"dataset-{time.time_ns()}.zip"
        rows = self.loop.labeled_images()[: limit_cases or None]
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for row in rows:
                archive.write(self.root / row["path"], row["path"])
                archive.write(self.label_file(row["id"], FINAL), f"labels/final/{row['id']}.nii.gz")
            annotated = {row["id"]: {"slices": row["slices"], "axis": row["axis"]} for row in rows}
            archive.writestr("annotated_slices.json", json.dumps(annotated))
            archive.writestr(DATASET_FILE, json.dumps({"labels": list(self.loop.config.labels)}))
        return str(target)

    def _lock(self, image_id: str) -> threading.RLock:
        with self._locks_guard:
            return self._locks.setdefault(image_id, threading.RLock())


def check_id(image_id: str) -> None:
    """Raise BadInput unless the id names a file inside a folder: relative, no `..`, nothing hidden, no control characters."""
    parts = image_id.split("/")
    rule = "An image id must be a relative path of visible names"
    if not image_id or len(image_id) > _ID_LENGTH:
        raise BadInput(f"{rule} of 1 to {_ID_LENGTH} characters, got {len(image_id)}.")
    if max(len(os.fsencode(part)) for part in parts) > _ID_LENGTH:
        raise BadInput(f"{rule} of at most {_ID_LENGTH} bytes each, got {image_id[:100]!r}.")
    if any(part.startswith(".") or not part.strip() for part in parts) or "\\" in image_id or ":" in parts[0][1:2]:
        raise BadInput(f"{rule}, without `..` and backslashes, got {image_id[:100]!r}.")
    if any(unicodedata.category(character).startswith("C") for character in image_id):
        raise BadInput(f"{rule}, without control characters, got {image_id[:100]!r}.")


def check_tag(tag: str) -> None:
    """Raise BadInput unless the tag is one of ours."""
    if tag not in TAGS:
        raise BadInput(f"A label's tag must be one of {', '.join(TAGS)}, got {tag[:100]!r}.")


def check_slices(slices: Sequence[Any], n_slices: int) -> list[int]:
    """The annotated slices a client names, ascending.

    Raises:
        BadInput: not whole numbers from 0 to n_slices - 1, or none.
    """
    if not slices:
        raise BadInput(
            "annotated_slices must name at least one slice; leave it out for the slices the ticket asked for."
        )
    for index in slices:
        if type(index) is not int or not 0 <= index < n_slices:
            raise BadInput(f"annotated_slices must be whole numbers from 0 to {n_slices - 1}, got {str(index)[:40]!r}.")
    return sorted(set(slices))


def _label_info(params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    info = params.get("label_info") or []
    if not isinstance(info, list):
        raise BadInput(f"label_info must be a list, got {type(info).__name__}.")
    return info


def _label_key(tag: str) -> str:
    return f"label:{tag}"


def _place_durably(source: Path, target: Path, *, own: bool) -> None:
    """Give a file's content another name, without ever replacing a file; complete and synced under it, or not there.

    Args:
        own: nobody else has the source open or keeps it, so that a second name will do for a copy.
    """
    beside = source
    try:
        if not own or source.stat().st_dev != target.parent.stat().st_dev:
            beside = target.with_name(f".{target.name[:100]}.{time.time_ns()}")
            shutil.copyfile(source, beside)
        sync_file(beside)
        os.link(beside, target)
    except FileExistsError:
        raise Conflict(f"{target.name} is there already and is never overwritten.") from None
    finally:
        if beside != source:
            beside.unlink(missing_ok=True)
    os.chmod(target, 0o644)
    sync_file(target.parent)
