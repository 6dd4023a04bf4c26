"""/al/returns: labels that came back by the archive; /al/tickets/{ticket}/start: what a viewer begins with."""

import asyncio
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from monailabel.endpoints.user.auth import User

from datastore.returns import Returns
from datastore.seg_export import of_archive, start_seg
from loop.errors import NotFound
from server.door import Annotator, AnyUser, parts
from server.infer import predictions

router = APIRouter(prefix="/al", tags=["Active learning"])

State = Literal["noticed", "recorded", "refused", "elsewhere", "ours", "before"]


def _returns() -> Returns:
    """Raises NotFound where nothing is looked for."""
    found = parts().returns
    if found is None:
        raise NotFound("No labels come back by an archive: images are files here, or --conf returns false is set.")
    return found


@router.get("/returns", summary="Labels that came back by the archive")
def list_returns(
    state: State | None = None,
    ticket: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Query(max_length=64, description="`next` of the page before")] = None,
    user: User = Depends(AnyUser),
) -> dict[str, Any]:
    """DICOM SEGs that were noticed, newest first. State: `noticed` waits, `recorded` is a submission, `refused` has a reason.

    `elsewhere` is drawn on no image here, `ours` was stored by us, `before` was there before the campaign. `how` they are
    looked for is `changes` (an Orthanc's feed) or `search`; `trouble` says why that does not work now. `next` is null on
    the last page.
    """
    status = _returns().status()
    listed = parts().loop.returned.listed(state, ticket, limit + 1, before)
    shown = [_shown(row) for row in listed[:limit]]
    return {**status, "returns": shown, "next": shown[-1]["instance"] if len(listed) > limit else None}


@router.post("/returns/{instance}/again", summary="Look at a DICOM SEG of the archive again")
def again(instance: str, user: User = Depends(Annotator)) -> dict[str, Any]:
    """One that was refused, as when the labels were set up wrong; or one from before the campaign. 409 for others."""
    returns = _returns()
    row = parts().loop.returned.again(instance)
    returns.wake()
    return _shown(row)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    names = {"instance": "sop_uid", "study": "study_uid", "series": "series_uid", "image": "image_id"}
    kept = ("state", "at", "annotator", "ticket", "submission", "reason")
    return {name: row[key] for name, key in names.items()} | {key: row[key] for key in kept}


@router.post("/tickets/{ticket}/start", summary="Store what OHIF begins with in the archive")
async def start(ticket: str, user: User = Depends(Annotator)) -> dict[str, Any]:
    """The mask so far as a DICOM SEG, or the model's where there is none: `series` is its UID, null where there is neither.

    It takes its time: the series may be fetched, and a mask predicted. 503 while the archive is down.
    """
    image = await asyncio.to_thread(lambda: parts().loop.ticket(ticket).image_id)
    return await asyncio.get_running_loop().run_in_executor(predictions, _start, image)


def _start(image: str) -> dict[str, Any]:
    here = parts()
    datastore = of_archive(here.datastore)
    wanted = here.config.start_mask
    written = None
    if wanted != "off":
        predict = partial(here.predicted, image) if wanted == "prediction" else None
        written = start_seg(datastore, image, predict, here.returns.delete if here.returns else None)
    return {"image": image, "series": written.series_uid if written else None}
