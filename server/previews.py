"""/al/items/.../prediction, uncertainty and thumbnail: what the model sees in an image, for pages to show."""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints.user.auth import User
from sqlalchemy.engine import RowMapping

from datastore.labels import as_viewers_draw
from datastore.rules import FINAL
from datastore.served import check_usable
from loop.errors import BadInput, NotFound
from loop.previews import Preview, Previews
from server.door import AnyUser, parts
from server.slices import PictureCache, SliceReader
from server.thumbnail import Layers, draw, png

router = APIRouter(prefix="/al/items", tags=["Active learning"])

_RETRY_AFTER = {"Retry-After": "3"}
_REVALIDATE = {"Cache-Control": "private, no-cache"}

_read = SliceReader()


@router.get("/{image:path}/prediction", summary="The mask that the model predicts, made ahead")
def prediction(image: str, request: Request, user: User = Depends(AnyUser)) -> Response:
    """A gzipped NIfTI file, uint8, with the image's shape and affine. 404 while it is not there: it is made, then ask again.

    Header `X-Model` is the digest of the model, and `X-Model-Current` whether it is the one in use.
    """
    return _volume(image, request, lambda preview: preview.mask)


@router.get("/{image:path}/uncertainty", summary="How unsure the model is of each voxel, made ahead")
def uncertainty(image: str, request: Request, user: User = Depends(AnyUser)) -> Response:
    """As the prediction: the entropy of the classes, scaled so that 0 is certain and 255 is ln C, all classes alike."""
    return _volume(image, request, lambda preview: preview.uncertainty)


def _volume(image_id: str, request: Request, file_of: Callable[[Preview], Path]) -> Response:
    image = parts().loop.catalogue.image(image_id)
    preview = _preview(image)
    if (preview is None or preview.digest != parts().loop.current_model()) and not image["error"]:
        parts().conductor.want_preview(image_id)
    if preview is None:
        return JSONResponse({"detail": _why_none(image)}, 404, headers=_RETRY_AFTER)
    tag = f'"{preview.digest}-{image["version"]}"'
    headers = _REVALIDATE | _model_headers(preview) | {"ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    try:
        data = file_of(preview).read_bytes()
    except FileNotFoundError:  # a newer model's came just now, and this one went
        return JSONResponse({"detail": _why_none(image)}, 404, headers=_RETRY_AFTER)
    return Response(data, media_type="application/gzip", headers=headers)


def _model_headers(preview: Preview) -> dict[str, str]:
    current = preview.digest == parts().loop.current_model()
    return {"X-Model": preview.digest, "X-Model-Current": str(current).lower()}


def _preview(image: RowMapping) -> Preview | None:
    here = parts()
    previews = Previews(here.workplace.state / "previews")
    return previews.newest(image["id"], image["version"], here.loop.current_model())


def _why_none(image: RowMapping) -> str:
    """Why there is no prediction yet.

    Raises:
        Conflict: there never will be one.
    """
    here = parts()
    check_usable(image)
    if here.loop.current_model() is None:
        return "There is no model yet that could predict: label some slices, and it is trained."
    if not here.config.previews:
        return "Predictions are not made ahead on this server (--conf previews 0). Ask for one: POST /infer/."
    return "The prediction of this image is not there yet. It was asked for: try again in a moment."


@router.get("/{image:path}/thumbnail/{index}.png", summary="A slice as a small picture")
def thumbnail(
    image: str,
    index: str,
    request: Request,
    size: Annotated[int, Query(ge=16, le=1024, description="pixels of the longer side")] = 256,
    contour: Annotated[bool, Query(description="outlines of the predicted classes")] = False,
    heat: Annotated[bool, Query(description="how unsure the model is")] = False,
    label: Annotated[bool, Query(description="what is annotated, filled")] = False,
    user: User = Depends(AnyUser),
) -> Response:
    """PNG, laid out as radiologists look at it, in the image's proportions. `index` is a slice, or `middle`.

    What is not there is not drawn, nor made for this, such as a prediction; header `X-Drawn` names what is.
    """
    here = parts()
    record = here.loop.catalogue.image(image)
    check_usable(record)
    if record["shape"] is None:
        # It comes from an archive, and is known in full only once it was fetched.
        here.datastore.readable_path(image)
        record = here.loop.catalogue.image(image)
    at = _slice(index, record)
    preview = _preview(record) if contour or heat else None
    labelled = label and at in (held := here.loop.submitted.labeled_slices(record["id"]))
    drawn = [
        name for name, on in (("contour", contour and preview), ("heat", heat and preview), ("label", labelled)) if on
    ]
    facts = (
        record["id"], record["version"], record["axis"], at, size, *drawn,
        preview.digest if preview else None, held[at] if labelled else None,
    )  # fmt: skip
    name = PictureCache.name(facts)
    headers = _REVALIDATE | {"ETag": f'"{name}"', "X-Drawn": ",".join(drawn)}
    headers |= _model_headers(preview) if preview else {}
    if f'"{name}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data = _pictures(here.workplace.state / "thumbnails").get(name, lambda: _picture(record, at, size, drawn, preview))
    return Response(data, media_type="image/png", headers=headers)


@lru_cache(4)
def _pictures(folder: Path) -> PictureCache:
    return PictureCache(folder)


def _slice(index: str, image: RowMapping) -> int:
    if index == "middle":
        return int(image["n_slices"]) // 2
    if not re.fullmatch("[0-9]{1,9}", index):
        raise BadInput(f"A slice must be a whole number from 0, or middle, got {index[:40]!r}.")
    if int(index) >= image["n_slices"]:
        raise NotFound(f"The image {image['id']!r} has slices 0 to {image['n_slices'] - 1}, got {index}.")
    return int(index)


def _picture(image: RowMapping, index: int, size: int, drawn: list[str], preview: Preview | None) -> bytes:
    here, axis = parts(), int(image["axis"])
    section = preview.section(index) if preview else None
    voxels = section.voxels if section else _read(here.datastore.readable_path(image["id"]), axis, index)
    shown: dict[str, Any] = {}
    if preview and "contour" in drawn:
        shown["contour"] = section.mask if section else _read(preview.mask, axis, index)
    if preview and "heat" in drawn:
        shown["heat"] = section.uncertainty if section else _read(preview.uncertainty, axis, index)
    if "label" in drawn:
        mask = _read(here.datastore.label_file(image["id"], FINAL), axis, index)
        unlabeled = here.config.unlabeled()
        shown["label"] = mask if unlabeled is None else as_viewers_draw(mask, unlabeled)
    return png(draw(Layers(voxels, **shown), np.array(image["affine"]), axis, size))
