"""Labels and predictions of an archive's images as DICOM SEG, and stored there."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from datastore.archive import ArchiveDatastore
from datastore.labels import as_viewers_draw
from datastore.rules import FINAL, ORIGINAL
from datastore.volume_io import read_volume
from dicom.seg_writer import Author, Kind, Written, write_seg
from loop.errors import BadInput, NotFound, Unavailable
from loop.returned import OURS, Noticed
from loop.workplace import model_name

logger = logging.getLogger(__name__)

Which = Literal["annotated", "all"]

Predict = Callable[[], tuple[Path, str]]
"""Gives the file of an image's mask, which is deleted here, and the digest of the weights."""

Delete = Callable[[str], bool]
"""Deletes an instance of the archive, by its UID; whether it is gone. Raises Unavailable."""

_LISTED = 3
"""Annotators named in the series description."""
_OPENING_SECONDS = 600.0
"""A start mask that gave way stays so long, for a viewer that is opening it."""


@dataclass(frozen=True)
class Form:
    """How a SEG is written: its kind, and the slices that get a frame."""

    kind: Kind = "labelmap"
    slices: Which = "annotated"


def composite_seg(datastore: ArchiveDatastore, image_id: str, tag: str, form: Form, *, begins: bool = False) -> Written:
    """The composite mask of an image, by its annotators; the same composite has the same UIDs.

    Args:
        tag: "final", or "original" with the start mask under it. begins: somebody begins with it.

    Raises:
        NotFound: no such image, or nothing was submitted for it. BadInput: no such tag, or no slice is annotated.
    """
    mask = _voxels(datastore.label_file(image_id, tag))
    mark = datastore.loop.config.unlabeled()
    if mark is not None and tag == FINAL:
        mask = as_viewers_draw(mask, mark)
    counts = datastore.loop.submitted.labeled_slices(image_id)
    if not counts and form.slices == "annotated":
        raise NotFound(f"No slice of {image_id!r} is annotated yet; slices=all gives its start mask.")
    sent = datastore.loop.submitted.submissions(image_id)
    counted = [row for row in sent if row["id"] in counts.values()] or sent
    names = list(dict.fromkeys(row["annotator"] for row in counted if row["annotator"]))
    shown = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
    model = str(counted[-1]["params"].get("model", "")) if not counts else ""
    name = model_name(datastore.loop.config) if model else shown
    author = Author(name, datetime.fromtimestamp(counted[-1]["at"], UTC), model, begins)
    return _written(datastore, image_id, mask, datastore.loop.config.viewer_values(), author, form, list(counts))


def prediction_seg(
    datastore: ArchiveDatastore, image_id: str, mask: Path, model: str, digest: str, at: float, form: Form
) -> Written:
    """A predicted mask of an image, by its model; the same prediction has the same UIDs.

    Args:
        mask: its file. at: seconds since the epoch.
    """
    author = Author(model, datetime.fromtimestamp(at, UTC), digest)
    values = datastore.loop.config.label_values()
    return _written(datastore, image_id, _voxels(mask), values, author, Form(form.kind, "all"), [])


def store_prediction(
    datastore: ArchiveDatastore, image_id: str, model: str, predict: Predict, at: float, kind: Kind
) -> tuple[Written, str]:
    """Predict a mask and store it in the archive: (what was stored, digest of the weights); raises as `store_seg`."""
    mask, digest = predict()
    try:
        written = prediction_seg(datastore, image_id, mask, model, digest, at, Form(kind, "all"))
    finally:
        mask.unlink(missing_ok=True)
    store_seg(datastore, image_id, written)
    return written, digest


def store_seg(datastore: ArchiveDatastore, image_id: str, written: Written) -> None:
    """Store it in the archive, in the image's study; raises Unavailable while that is down, BadInput if it is refused."""
    study = datastore.images.geometry(image_id).study_uid
    # First, so that it is never taken for somebody's answer.
    datastore.loop.returned.notice([Noticed(written.sop_uid, study, written.series_uid)], state=OURS)
    datastore.images.archive.store(study, written.content)


def start_seg(
    datastore: ArchiveDatastore, image_id: str, predict: Predict | None, delete: Delete | None = None
) -> Written | None:
    """What an annotator of an image begins with, stored in the archive: the mask so far, or a prediction where there is none.

    A prediction is kept as a start mask, so that what comes back unchanged of it is not taken for an annotation. The one that
    was stored before is deleted, where the archive can do that.

    Args:
        predict: None: no predictions.
        delete: an instance of the archive, by its UID; None: start masks stay.

    Returns:
        None where nothing is there to begin with.

    Raises:
        As `store_seg`, and what `predict` raises.
    """
    sent = datastore.loop.submitted.submissions(image_id)
    if not any(row["tag"] == FINAL for row in sent) and predict is not None:
        digest = datastore.loop.current_model()
        if digest and not any(row["params"].get("model") == digest for row in sent):
            mask, digest = predict()
            try:
                datastore.submit(image_id, mask, tag=ORIGINAL, params={"model": digest})
            finally:
                mask.unlink(missing_ok=True)
    if not datastore.loop.submitted.submissions(image_id):
        return None
    written = composite_seg(datastore, image_id, ORIGINAL, Form("labelmap", "all"), begins=True)
    store_seg(datastore, image_id, written)
    _replace_former(datastore, image_id, written.sop_uid, delete)
    return written


def _replace_former(datastore: ArchiveDatastore, image_id: str, sop_uid: str, delete: Delete | None) -> None:
    """Delete the start masks of an image that were stored before this one; what fails is tried the next time."""
    returned = datastore.loop.returned
    returned.begins(sop_uid, image_id)
    if delete is None:
        return
    try:
        for former in returned.former_starts(image_id, sop_uid, _OPENING_SECONDS):
            if delete(former):
                returned.deleted(former)
    except Unavailable as error:
        logger.warning("A former start mask stays in the archive: %s", error)


def of_archive(datastore: object) -> ArchiveDatastore:
    """The datastore, if its images are an archive's; raises BadInput otherwise."""
    if not isinstance(datastore, ArchiveDatastore):
        raise BadInput("There is a DICOM SEG of images of an archive only: start the server with a DICOMweb address.")
    return datastore


def _voxels(file: Path) -> npt.NDArray[np.uint8]:
    return read_volume(file).array.astype(np.uint8)


def _written(
    datastore: ArchiveDatastore,
    image_id: str,
    mask: npt.NDArray[np.uint8],
    values: Mapping[str, int],
    author: Author,
    form: Form,
    annotated: list[int],
) -> Written:
    slices = annotated if form.slices == "annotated" else None
    return write_seg(mask, datastore.images.geometry(image_id), values, author, slices=slices, kind=form.kind)
