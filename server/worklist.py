"""/al/worklist and who annotated what: for the pages, and for a PACS that tells people what there is to do."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, Query, Request
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field

from datastore.archive import ArchiveDatastore
from dicom.images import study_of
from loop.shell import where_of
from server.door import Annotator, AnyUser, annotator_of, parts
from server.links import ohif_opener, slicer_link

router = APIRouter(prefix="/al", tags=["Active learning"])

_LARGEST_ID = 2**62
_MOST_SLICES = 10_000


class SkipItems(BaseModel):
    """Which slices of an image cannot be annotated, and why."""

    model_config = ConfigDict(extra="forbid")

    slices: list[Annotated[int, Field(ge=0, le=2**31 - 1)] | None] = Field(
        min_length=1, max_length=_MOST_SLICES, description="null is the whole volume"
    )
    reason: str = Field(
        min_length=1, max_length=1000, description="kept with the slices, which are never asked for again"
    )
    annotator: str = Field("", description="who says so")


@router.get("/worklist", summary="Who should annotate what")
def worklist(
    request: Request,
    round_no: Annotated[int | None, Query(alias="round", ge=1, le=_LARGEST_ID)] = None,
    state: Annotated[Literal["open", "leased", "labeled", "skipped", "unreadable"] | None, Query()] = None,
    annotator: Annotated[str | None, Query(max_length=200, description="who holds, annotated or skipped it")] = None,
    image: Annotated[str, Query(max_length=1000, description="part of the image's id")] = "",
    after: Annotated[int, Query(ge=-1, le=_LARGEST_ID, description="`next` of the page before")] = -1,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    user: User = Depends(AnyUser),
) -> dict[str, Any]:
    """The items of a round in asking order, with state, annotator and links; without `round`, of the one served now.

    `next` is null on the last page. `links.annotate` opens the item's ticket, or the worklist at it while it has none; `server`
    is what the links begin at.
    """
    here = parts()
    overview, now = here.loop.overview, here.loop.clock()
    base: dict[str, Any] = {
        "server": str(request.base_url).rstrip("/"),
        "slices_per_ticket": here.config.slices_per_ticket,
    }
    number = round_no or overview.round_to_show(here.config.strategy)
    if number is None:
        return {"round": None, "counts": {}, "entries": [], "next": None, **base}
    counts = overview.round_counts(number, now)
    rows = overview.worklist(number, now, state=state, annotator=annotator, image=image, after=after, limit=limit + 1)
    shown = rows[:limit]
    return {
        "round": here.loop.round_header(number),
        "counts": counts,
        "entries": [_entry(row, base["server"]) for row in shown],
        "next": shown[-1]["rank"] if len(rows) > limit else None,
        **base,
    }


def _entry(row: dict[str, Any], server: str) -> dict[str, Any]:
    told = {key: value for key, value in row.items() if key != "path"}  # where we keep it is nobody's business
    return {**told, "links": _links(row, server)}


def _links(row: dict[str, Any], server: str) -> dict[str, Any]:
    """Where an item is annotated; `slicer` is a sentence, because no address opens a slice in 3D Slicer, only a study."""
    ticket = row["ticket"] if row["state"] == "leased" else None
    where = where_of([] if row["slice"] is None else [row["slice"]], row["axis"])
    first = "" if ticket else "Take it by /al/ask or the worklist, then: "
    slice_name = "middle" if row["slice"] is None else row["slice"]
    archived = isinstance(parts().datastore, ArchiveDatastore)
    return {
        "annotate": f"/annotate/{ticket}" if ticket else f"/worklist?image={quote(row['image'], safe='')}",
        "ohif": ohif_opener(ticket) if ticket and archived else None,
        "slicer": (
            f"{first}3D Slicer, module MONAI Label, server {server}, client id {row['annotator'] if ticket else 'your name'}, "
            f"Next Sample: {row['patient']}: {where}."
        ),
        "slicer_study": slicer_link(server, study_of(row["path"])) if archived else None,
        "thumbnail": f"/al/items/{quote(row['image'])}/thumbnail/{slice_name}.png",
    }


@router.post("/items/{image:path}/skip", summary="These slices cannot be annotated")
def skip_items(image: str, request: Annotated[SkipItems, Body()], user: User = Depends(Annotator)) -> dict[str, Any]:
    """Without a ticket; they are never asked for again. 409 if somebody annotates one of them now, or it is annotated."""
    annotator = annotator_of(user, request.annotator)
    parts().loop.skip_items(image, request.slices, request.reason, annotator)
    parts().conductor.wake()
    return {
        "image": image,
        "slices": request.slices,
        "state": "skipped",
        "reason": request.reason,
        "annotator": annotator,
    }


@router.get("/submissions", summary="The last labels, newest first")
def submissions(
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[int | None, Query(ge=1, le=_LARGEST_ID, description="`id` of the last one known")] = None,
    user: User = Depends(AnyUser),
) -> list[dict[str, Any]]:
    """Who sent what when; `seconds` from handing out the ticket until the label came, null without a ticket."""
    return parts().loop.overview.submissions(limit, before)


@router.get("/annotators", summary="Who annotated how much")
def annotators(user: User = Depends(AnyUser)) -> list[dict[str, Any]]:
    """Labels and slices of each, when the last came, and the median seconds a ticket of the last 200."""
    return parts().loop.overview.annotators()
