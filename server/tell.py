"""POST /al/tell: many labels in one request, each for itself; one that is refused does not lose the others."""

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from monailabel.endpoints.user.auth import User

from datastore.rules import FINAL, SEG_SUFFIX, label_suffix
from dicom.seg_head import read_head
from loop.errors import BadInput, NextSliceError, TooLarge
from server.door import Annotator, annotator_of, new_file, parse_params, parts

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/al", tags=["Active learning"])

_MOST_LABELS = 1000
_PIECE = 1 << 20
_KEYS = frozenset({"image", "ticket", "annotated_slices", "client_id", "label_info", "tag"})


@dataclass(frozen=True)
class _Sent:
    """A label that was sent: its file's name, and how it is opened."""

    name: str
    open: Callable[[], IO[bytes]]


@router.post("/tell", summary="Submit many labels")
def tell(
    labels: Annotated[list[UploadFile], File(description="label files, or ZIPs of them")],
    params: Annotated[str, Form()] = "{}",
    user: User = Depends(Annotator),
) -> dict[str, Any]:
    """Each as PUT /datastore/label would take it, in the order sent; `results` has one entry for each, saved or refused.

    `params`: `client_id` (who), and `items`: {file name: {`image`, `ticket`, `annotated_slices`, `client_id`, `label_info`,
    `tag`}}, all optional. Without an image named, a ticket names it, else a DICOM SEG its series, else the file is
    called after it.
    """
    wishes = parse_params(params)
    items = wishes.get("items") or {}
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        raise BadInput("items must be a JSON object of objects: {file name: {image, ticket, annotated_slices, ...}}.")
    with ExitStack() as opened:
        sent = [one for upload in labels for one in _sent(upload, opened)]
        if len(sent) > _MOST_LABELS:
            raise BadInput(f"At most {_MOST_LABELS} labels can be sent at once, got {len(sent)}.")
        if lost := sorted(set(items) - {one.name for one in sent}):
            raise BadInput(f"items names files that were not sent: {', '.join(lost[:5])[:400]}.")
        room = parts().config.max_upload_mb << 20
        results = []
        for one in sent:
            result, size = _told(one, wishes, items.get(one.name, {}), user, room)
            room -= size
            results.append(result)
    parts().conductor.wake()
    saved = sum("submission" in result for result in results)
    return {"saved": saved, "refused": len(results) - saved, "results": results}


def _sent(upload: UploadFile, opened: ExitStack) -> Iterator[_Sent]:
    name = (upload.filename or "").replace("\\", "/")
    if not name.lower().endswith(".zip"):
        yield _Sent(name, lambda: upload.file)
        return
    try:
        box = opened.enter_context(zipfile.ZipFile(upload.file))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadInput(f"{name[:100]!r} must be a ZIP file, but cannot be read as one: {str(error)[:100]}.") from None
    for entry in box.infolist():
        if not entry.is_dir():
            yield _Sent(entry.filename, lambda entry=entry: box.open(entry))  # type: ignore[misc]


def _told(
    one: _Sent, wishes: Mapping[str, Any], item: Mapping[str, Any], user: User, room: int
) -> tuple[dict[str, Any], int]:
    """(what became of a label, its bytes)."""
    size = 0
    try:
        if unknown := sorted(set(item) - _KEYS):
            raise BadInput(f"An item has no {unknown[0][:40]!r}; it has {', '.join(sorted(_KEYS))}.")
        with _unpacked(one, room) as path:
            size = path.stat().st_size
            return {"file": one.name, **_saved(path, one.name, {**wishes, **item}, user)}, size
    except NextSliceError as error:
        if error.status >= 500:
            logger.error("/al/tell, %s: %s", one.name[:200], error)
        return {"file": one.name, "error": str(error), "status": error.status}, size


@contextmanager
def _unpacked(one: _Sent, room: int) -> Iterator[Path]:
    """The label as a file of ours with a name of ours, of at most `room` bytes."""
    with new_file(label_suffix(one.name)) as target:
        try:
            with one.open() as packed, open(target, "wb") as out:
                while piece := packed.read(_PIECE):
                    if out.tell() + len(piece) > room:
                        raise TooLarge("The labels must be at most max_upload_mb in all, unpacked.")
                    out.write(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            # RuntimeError: it has a password. NotImplementedError: a way of packing that Python does not know.
            raise BadInput(f"It cannot be unpacked: {str(error)[:200]}.") from None
        yield target


def _saved(path: Path, name: str, wishes: Mapping[str, Any], user: User) -> dict[str, Any]:
    here = parts()
    ticket, slices, tag = wishes.get("ticket"), wishes.get("annotated_slices"), wishes.get("tag") or FINAL
    if not isinstance(ticket, str | None):
        raise BadInput(f"ticket must be a ticket's id, got {str(ticket)[:40]!r}.")
    if not isinstance(slices, list | None):
        raise BadInput(f"annotated_slices must be a list of slice numbers, got {str(slices)[:40]!r}.")
    image = _image_of(path, name, wishes.get("image"), ticket)
    here.loop.catalogue.image(image)
    told = {key: value for key, value in wishes.items() if key != "items"}
    annotator = annotator_of(user, wishes.get("client_id"))
    kept = here.datastore.submit(
        image, path, annotator=annotator, tag=str(tag), ticket=ticket, slices=slices, params=told
    )
    return {"image": image, **kept}


def _image_of(path: Path, name: str, named: object, ticket: str | None) -> str:
    """Which image a label is of."""
    if isinstance(named, str) and named:
        return named
    if named is not None:
        raise BadInput(f"image must be an image's id, got {str(named)[:40]!r}.")
    if ticket is not None:
        return parts().loop.ticket(ticket).image_id
    suffix = label_suffix(name)
    series = read_head(path).series_uids if suffix == SEG_SUFFIX else frozenset()
    if len(series) == 1:
        return next(iter(series))
    return str(PurePosixPath(name))[: -len(suffix)]
