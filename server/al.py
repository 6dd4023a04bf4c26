"""/al: rounds, tickets, progress, models and events, for pages, robots and PACS integrations."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette.sse import EventSourceResponse

import strategies
from datastore.volume_io import write_volume
from loop import events
from loop.errors import BadInput, Conflict, unknown
from loop.jobs import KINDS
from loop.shell import ServedStrategy, sample_of
from loop.tickets import Ticket, Wanted
from loop.workplace import dimension
from server import links
from server.door import Admin, Annotator, AnyUser, annotator_of, new_file, parts
from server.jobs import shown

router = APIRouter(prefix="/al", tags=["Active learning"])

_POLL_SECONDS = 0.5
_LARGEST_ID = 2**62
"""Above what is ever counted, within what a database takes for a whole number."""


class AskRequest(BaseModel):
    """What to ask for."""

    model_config = ConfigDict(extra="forbid")

    strategy: str | None = Field(None, description="a registered strategy; the app's default if left out")
    annotator: str = Field("", description="who asks; empty is nobody in particular and always gets fresh tickets")
    n: int = Field(1, ge=1, le=100, description="how many tickets at once")
    image: str | None = Field(
        None, max_length=4096, description="a ticket of this very image, in the place of the best one"
    )
    slice: int | None = Field(
        None, ge=0, le=2**31 - 1, description="with image: of this slice, and what else it has room for"
    )
    resume: bool = Field(True, description="count the annotator's own open tickets, and give them again")


class SkipRequest(BaseModel):
    """Why the items cannot be annotated."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(
        min_length=1, max_length=1000, description="kept with the items, which are never asked for again"
    )


def _shown(ticket: Ticket) -> dict[str, Any]:
    sample = sample_of(ticket)
    asked = {**sample["ask"], **links.of_sample(sample)}
    return {"image": ticket.image_id, **asked, "state": ticket.state, "opened_at": ticket.opened_at}


@router.get("/progress", summary="How far the annotation is, and what runs now")
def progress(user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Counts of images and slices; the open rounds; what runs with fraction and eta in s; the model; how the archive is."""
    here = parts()
    digest = here.weights.current()
    running = {kind: [shown(job) for job in here.loop.jobs.active(kind)] for kind in KINDS}
    return {
        "counts": here.loop.catalogue.counts(),
        "rounds": here.loop.rounds(20, state="open"),
        "running": running,
        "last_training": shown(job) if (job := here.loop.jobs.newest("train")) else None,
        "last_sweep": shown(job) if (job := here.loop.jobs.newest("sweep")) else None,
        "model": here.weights.card(digest) if digest else None,
        "new_slices_since_training": here.loop.jobs.new_slices(),
        "labels": list(here.config.labels),
        "unlabeled_value": here.config.unlabeled(),
        "unit": here.config.unit,
        "strategy": here.config.strategy,
        "source": here.datastore.source(),
    }


@router.get("/model", summary="The configured model, and nnU-Net's plans of the campaign")
def model(user: User = Depends(AnyUser)) -> dict[str, Any]:
    """`plans` is null for a model that needs none, and before the first training or sweep has made them."""
    here = parts()
    plans = here.workplace.plans()
    return {
        "name": here.model,
        "dimension": dimension(here.config),
        "digest": here.weights.current(),
        "plans": plans.summary() if plans else None,
    }


@router.get("/rounds", summary="The last rounds, newest first")
def list_rounds(
    limit: Annotated[int, Query(ge=1, le=1000)] = 100, user: User = Depends(AnyUser)
) -> list[dict[str, Any]]:
    """Each with its strategy, what really selected (the cold start stands in while there is no model), model, and item counts."""
    return parts().loop.rounds(limit)


@router.get("/rounds/{number}", summary="A round with its items")
def get_round(number: Annotated[int, Path(ge=1, le=_LARGEST_ID)], user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Items in the order in which they are asked, with score, reason and state."""
    return parts().loop.round(number)


@router.post("/ask", summary="Lease tickets")
def ask(request: Annotated[AskRequest, Body()], user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Up to n tickets; two annotators never get the same item. An empty list comes with the reason.

    With `image`, one ticket of it; 409 says who has it, or why nothing of it is asked for.
    """
    here = parts()
    name = request.strategy or here.config.strategy
    served: dict[str, ServedStrategy] = app_instance()._strategies
    if name not in served:
        raise unknown("strategy", name, sorted(served))
    annotator = annotator_of(user, request.annotator)
    if request.slice is not None and request.image is None:
        raise BadInput("slice needs the image that it is of.")
    of = None
    if request.image is not None:
        of = Wanted(here.loop.catalogue.image(request.image)["id"], request.slice)
    tickets = served[name].ask(annotator, request.n, resume=request.resume, of=of)
    return {"tickets": [_shown(ticket) for ticket in tickets], "reason": None if tickets else _why_none()}


def _why_none() -> str:
    """Why nothing can be handed out now, in a sentence."""
    here = parts()
    counts = here.loop.catalogue.counts()
    for kind, doing in (("train", "a training"), ("sweep", "a sweep")):
        if here.loop.jobs.active(kind):
            return f"The round is handed out; {doing} is running, and a new round follows."
    if counts["slices"] == 0:
        source = here.datastore.source()
        if source is None:
            return "There are no images in the studies folder yet."
        return source["trouble"] or "The archive lists no series of the configured modalities and conditions."
    if counts["labeled_slices"] + counts["skipped"] >= counts["slices"]:
        return "Every slice is annotated or skipped."
    return "All items of the round are handed out. They come back when they are released or their lease ends."


@router.get("/tickets/{ticket}", summary="A ticket")
def get_ticket(ticket: str, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """In whatever state: open, submitted, skipped, released, expired."""
    return _shown(parts().loop.ticket(ticket))


@router.post("/tickets/{ticket}/skip", summary="These items cannot be annotated")
def skip(ticket: str, request: Annotated[SkipRequest, Body()], user: User = Depends(Annotator)) -> dict[str, Any]:
    """They are never asked for again. 410 if the lease ran out, 409 if the ticket is closed."""
    parts().loop.skip(ticket, request.reason)
    parts().conductor.wake()
    return get_ticket(ticket, user)


@router.post("/tickets/{ticket}/nothing", summary="There is nothing to label on the ticket's slices")
def nothing(ticket: str, user: User = Depends(Annotator)) -> dict[str, Any]:
    """Keeps an empty label for the asked slices, as if a viewer had sent it. 409 if the ticket is closed."""
    here = parts()
    asked = here.loop.ticket(ticket)
    if asked.state in ("submitted", "skipped"):
        raise Conflict(f"The ticket {ticket!r} is {asked.state} already.")
    annotator = annotator_of(user, asked.annotator)
    here.datastore.image_path(asked.image_id)  # of an archive, the volume's size is known once it was fetched
    image = here.loop.catalogue.image(asked.image_id)
    with new_file(".nii.gz") as path:
        write_volume(path, np.zeros(image["shape"], np.uint8), np.array(image["affine"]))
        kept = here.datastore.submit(
            asked.image_id, path, annotator=annotator, ticket=ticket, slices=asked.slices, params={"nothing": True}
        )
    here.conductor.wake()
    return {"image": asked.image_id, **kept, "message": f"Saved: nothing on {len(kept['slices'])} slice(s)."}


@router.post("/tickets/{ticket}/release", summary="Give the items back")
def release(ticket: str, user: User = Depends(Annotator)) -> dict[str, Any]:
    """Others can get them at once. 410 if the lease ran out, 409 if the ticket is closed."""
    parts().loop.release(ticket)
    return get_ticket(ticket, user)


@router.post("/tickets/{ticket}/renew", summary="Keep the items for another lease time")
def renew(ticket: str, user: User = Depends(Annotator)) -> dict[str, Any]:
    """410 if the lease ran out, 409 if the ticket is closed."""
    return _shown(parts().loop.renew(ticket))


@router.get("/items/{image:path}", summary="An image's slices, states, scores and submissions")
def get_items(image: str, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """State of a slice: open, asked, leased, skipped, labeled. Scores are those of the newest round that asked for it."""
    loop = parts().loop
    record = loop.catalogue.image(image)
    facts = {
        key: record[key]
        for key in ("id", "patient", "split", "shape", "spacing", "affine", "axis", "n_slices", "n_labeled", "error")
    }
    sent = [
        {key: row[key] for key in ("id", "tag", "annotator", "at", "digest", "slices", "ticket")}
        for row in loop.submitted.submissions(image)
    ]
    return {**facts, "slices": loop.item_states(image), "submissions": sent}


@router.get("/models", summary="Every model version")
def list_models(user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Cards (digest, metrics, learning curve, parent, seed), oldest first, and the history of what was in use when."""
    weights = parts().weights
    return {"current": weights.current(), "models": weights.cards(), "history": weights.history()}


@router.post("/models/{digest}/rollback", summary="Use an earlier model again")
def rollback(digest: str, user: User = Depends(Admin)) -> dict[str, Any]:
    """Rounds are planned anew with it."""
    return parts().rollback(digest)


@router.get("/strategies", summary="What can be asked with")
def list_strategies(user: User = Depends(AnyUser)) -> list[dict[str, Any]]:
    """Name, what it asks for, whether it needs a model, its parameters with their meaning, and its source."""
    return strategies.table()


@router.get("/events", summary="What happens, as server-sent events")
async def stream_events(
    request: Request,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
    since: Annotated[int | None, Query(ge=0, le=_LARGEST_ID)] = None,
    user: User = Depends(AnyUser),
) -> EventSourceResponse:
    """label_saved, label_refused, ticket_*, items_skipped, round_*, train_*, sweep_*, model_published, images_changed.

    Begins with what happens from now on; `since` or the header Last-Event-ID begin after an earlier event's id.
    """
    if last_event_id is not None and not re.fullmatch("[0-9]{1,18}", last_event_id):
        raise BadInput(f"Last-Event-ID must be a whole number, got {last_event_id[:40]!r}.")
    store = parts().store
    start = int(last_event_id) if last_event_id else since if since is not None else await run_sync(events.last, store)

    async def stream(at: int) -> AsyncIterator[dict[str, Any]]:
        while not await request.is_disconnected():
            for event in await run_sync(events.since, store, at):
                at = event["id"]
                yield {"id": str(at), "event": event["kind"], "data": json.dumps({"at": event["at"], **event["data"]})}
            await anyio.sleep(_POLL_SECONDS)

    return EventSourceResponse(stream(start))


@router.get("/health", summary="Is the server fit to work")
def health(user: User = Depends(AnyUser)) -> dict[str, Any]:
    """200 when the store answers; `source` tells whether an archive does."""
    here = parts()
    counts = here.loop.catalogue.counts()
    return {
        "status": "ok",
        "images": counts["images"],
        "model": here.weights.current(),
        "source": here.datastore.source(),
    }
