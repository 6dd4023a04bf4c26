"""Labels and predictions of an archive's images as DICOM SEG, and stored there."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from datastore.archive import ArchiveDatastore
from datastore.labels import as_viewers_draw
from datastore.rules import FINAL
from datastore.volume_io import read_volume
from dicom.seg_writer import Author, Kind, Written, write_seg
from loop.errors import BadInput, NotFound

Which = Literal["annotated", "all"]

_LISTED = 3
"""Annotators named in the series description."""


@dataclass(frozen=True)
class Form:
    """How a SEG is written: its kind, and the slices that get a frame."""

    kind: Kind = "labelmap"
    slices: Which = "annotated"


def composite_seg(datastore: ArchiveDatastore, image_id: str, tag: str, form: Form) -> Written:
    """The composite mask of an image, by its annotators; the same composite has the same UIDs.

    Args:
        tag: "final", or "original" with the start mask under it.

    Raises:
        NotFound: no such image, or nothing was submitted for it. BadInput: no such tag, or no slice is annotated.
    """
    mask = _voxels(datastore.label_file(image_id, tag))
    mark = datastore.loop.config.unlabeled()
    if mark is not None and tag == FINAL:
        mask = as_viewers_draw(mask, mark)
    counts = datastore.loop.labeled_slices(image_id)
    if not counts and form.slices == "annotated":
        raise NotFound(f"No slice of {image_id!r} is annotated yet; slices=all gives its start mask.")
    sent = datastore.loop.submissions(image_id)
    counted = [row for row in sent if row["id"] in counts.values()] or sent
    names = list(dict.fromkeys(row["annotator"] for row in counted if row["annotator"]))
    shown = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
    author = Author(shown, datetime.fromtimestamp(counted[-1]["at"], UTC))
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


def store_seg(datastore: ArchiveDatastore, image_id: str, written: Written) -> None:
    """Store it in the archive, in the image's study; raises Unavailable while that is down, BadInput if it is refused."""
    datastore.images.archive.store(datastore.images.geometry(image_id).study_uid, written.content)


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
