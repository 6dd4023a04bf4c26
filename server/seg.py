"""/al/items/{image}: composite masks and predictions as DICOM SEG, and into the archive."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field

from datastore.archive import ArchiveDatastore
from datastore.rules import FINAL
from datastore.seg_export import Form, Which, composite_seg, of_archive, store_prediction, store_seg
from dicom.seg_writer import Kind, Written
from loop.errors import NotFound
from server.al import get_items
from server.door import Annotator, AnyUser, parts
from server.infer import predictions

router = APIRouter(prefix="/al", tags=["Active learning"])


class StoreRequest(BaseModel):
    """What to store in the archive."""

    model_config = ConfigDict(extra="forbid")

    what: Literal["composite", "prediction"] = Field("composite", description="the annotated mask, or the model's")
    model: str | None = Field(None, description="of a prediction; the configured one if left out")
    kind: Kind = Field("labelmap", description="labelmap is what OHIF edits; binary is what older software reads")
    slices: Which = Field("annotated", description="of a composite, the slices that get a frame")


@router.get("/items/{image:path}/seg", summary="The composite mask as DICOM SEG", response_class=Response)
def get_seg(
    image: str,
    tag: Literal["final", "original"] = "final",
    kind: Kind = "labelmap",
    slices: Which = "annotated",
    user: User = Depends(AnyUser),
) -> Response:
    """Of an archive's image. `slices=annotated` has a frame for each annotated slice, also for one with nothing on it.

    `tag=original&slices=all` is what a viewer opens to go on with.
    """
    here = parts()
    if not isinstance(here.datastore, ArchiveDatastore):
        with suppress(NotFound):  # in a folder, an image may be called so
            return JSONResponse(jsonable_encoder(get_items(f"{image}/seg", user)))
    written = composite_seg(of_archive(here.datastore), image, tag, Form(kind, slices))
    named = {"Content-Disposition": f'attachment; filename="{written.sop_uid}.dcm"'}
    return Response(written.content, media_type="application/dicom", headers=named)


@router.post("/items/{image:path}/store", summary="Store a DICOM SEG in the archive")
async def store(
    image: str, request: Annotated[StoreRequest, Body()], user: User = Depends(Annotator)
) -> dict[str, Any]:
    """The composite, or a new prediction. The same mask again is the same instance, and stored once.

    503 while the archive is down: nothing is lost, ask again.
    """
    loop = asyncio.get_running_loop()
    if request.what == "prediction":
        return await loop.run_in_executor(predictions, _store_prediction, image, request)
    return await asyncio.to_thread(_store_composite, image, request)


def _store_composite(image: str, request: StoreRequest) -> dict[str, Any]:
    datastore = of_archive(parts().datastore)
    written = composite_seg(datastore, image, FINAL, Form(request.kind, request.slices))
    store_seg(datastore, image, written)
    return _told(image, written)


def _store_prediction(image: str, request: StoreRequest) -> dict[str, Any]:
    here = parts()
    model = request.model or here.model
    predict = partial(here.predicted, image, model)
    written, _ = store_prediction(of_archive(here.datastore), image, model, predict, here.loop.clock(), request.kind)
    return _told(image, written)


def _told(image: str, written: Written) -> dict[str, Any]:
    return {"image": image, "series": written.series_uid, "instance": written.sop_uid}
