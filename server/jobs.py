"""/train, /scoring and /batch: what runs in the background, in MONAI Label's paths and form."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from fastapi import APIRouter, Depends
from monailabel.endpoints.user.auth import User
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.exceptions import HTTPException

import strategies
from loop.errors import BadInput, NextSliceError, NotFound, unknown
from loop.shell import SweepScoring
from server.door import Admin, Annotator, AnyUser, Params, parts
from trainers.task import training_request

router = APIRouter()

_STATES = {
    "queued": "SUBMITTED",
    "running": "RUNNING",
    "done": "DONE",
    "error": "ERROR",
    "stopped": "STOPPED",
    "lost": "ERROR",
}
_WAIT_SECONDS = 0.1
_PLACES = 4
_places = threading.BoundedSemaphore(_PLACES)

_starting = threading.Lock()
"""Held from looking for a running job to queueing one, so that two requests at once do not both find none."""


def shown(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job in MONAI Label's form (id, status, request, start_ts, end_ts, details) with ours beside it."""
    details = [*job["warnings"], *([job["message"]] if job["message"] else [])]
    return {
        "id": job["id"],
        "status": _STATES[job["state"]],
        "request": {"model" if job["kind"] == "train" else "method": job["name"], **job["request"]},
        "start_ts": _stamp(job["started_at"] or job["queued_at"]),
        "end_ts": _stamp(job["ended_at"]) if job["ended_at"] else None,
        "details": details,
        "reason": job["reason"],
        "progress": job["progress"],
        "result": job["result"],
    }


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _status(kind: str, everything: bool, check_if_running: bool) -> Any:
    jobs = parts().loop.jobs
    if check_if_running:
        active = jobs.active(kind)
        if not active:
            raise NotFound(f"No {kind} is running.")
        return shown(active[0])
    if everything:
        return [shown(job) for job in jobs.all(kind)]
    newest = jobs.newest(kind)
    if newest is None:
        raise NotFound(f"There was no {kind} yet.")
    return shown(newest)


@contextmanager
def _place_to_wait(wanted: bool) -> Iterator[None]:
    """One of a few: who waits for a job holds a thread that all other requests need."""
    if wanted and not _places.acquire(blocking=False):
        raise HTTPException(
            429, f"{_PLACES} requests wait for a job already. Leave run_sync out, and ask for the status."
        )
    try:
        yield
    finally:
        if wanted:
            _places.release()


def _start(kind: str, name: str, request: dict[str, Any], *, enqueue: bool, run_sync: bool) -> dict[str, Any]:
    conductor, jobs = parts().conductor, parts().loop.jobs
    with _place_to_wait(run_sync):
        with _starting:
            if not enqueue and jobs.active(kind):
                raise HTTPException(429, f"A {kind} is running already. Wait for it, stop it, or set enqueue=true.")
            job = conductor.start_job(kind, name, request, enqueue=enqueue)
        while run_sync and job["ended_at"] is None:
            time.sleep(_WAIT_SECONDS)
            job = jobs.get(job["id"])
    if run_sync and job["state"] != "done":
        raise NextSliceError(f"The {kind} ended with {job['state']}: {job['message']}")
    return shown(job)


# --- training


@router.get("/train/", tags=["Train"], summary="The newest training")
def train_status(all: bool = False, check_if_running: bool = False, user: User = Depends(AnyUser)) -> Any:
    """`progress` has epoch, epochs, fraction, loss, dice, eta (s). `check_if_running` answers 404 when none is."""
    return _status("train", all, check_if_running)


@router.post("/train/", tags=["Train"], include_in_schema=False)
def train_all(params: Params = None, run_sync: bool = False, user: User = Depends(Admin)) -> dict[str, Any]:
    """Every model: there is one."""
    name = parts().model
    own = (params or {}).get(name, params or {})
    return {name: {"result": train(name, own if isinstance(own, dict) else {}, run_sync, True, user), "detail": None}}


@router.post("/train/{model}", tags=["Train"], summary="Train now")
def train(
    model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False, user: User = Depends(Admin)
) -> dict[str, Any]:
    """On all annotated slices. Of this training alone: epochs, steps_per_epoch, batch_size, learning_rate, seed, train_from."""
    if model != parts().model:
        raise unknown("model", model, [parts().model])
    return _start("train", model, training_request(params or {}, parts().config), enqueue=enqueue, run_sync=run_sync)


@router.delete("/train/", tags=["Train"], summary="Stop the running training")
def stop_training(user: User = Depends(Admin)) -> dict[str, Any] | None:
    """The published model stays as it is. null if none was running."""
    job = parts().conductor.stop("train")
    return shown(job) if job else None


# --- sweeps


@router.get("/scoring/", tags=["Scoring"], summary="The newest sweep")
def sweep_status(all: bool = False, check_if_running: bool = False, user: User = Depends(AnyUser)) -> Any:
    """`progress` has items, of, fraction, eta (s). `check_if_running` answers 404 when none is."""
    return _status("sweep", all, check_if_running)


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def sweep_default(params: Params = None, run_sync: bool = False, user: User = Depends(Annotator)) -> dict[str, Any]:
    """The default strategy: a sweep of every strategy would open rounds that nobody asked for."""
    name = parts().config.strategy
    return {name: {"result": sweep(name, params, run_sync, True, user), "detail": None}}


@router.post("/scoring/{method}", tags=["Scoring"], summary="Sweep the pool and open a round of this strategy")
def sweep(
    method: str, params: Params = None, run_sync: bool = False, enqueue: bool = False, user: User = Depends(Annotator)
) -> dict[str, Any]:
    """Body: `budget` (items of the round), `parameters` (of the strategy). The open round is served until the new one is."""
    if method not in strategies.names():
        raise unknown("scoring method", method, strategies.names())
    request = SweepScoring(method, parts().conductor).request_of(params or {})
    return _start("sweep", method, request, enqueue=enqueue, run_sync=run_sync)


@router.delete("/scoring/", tags=["Scoring"], summary="Stop the running sweep")
def stop_sweep(user: User = Depends(Annotator)) -> dict[str, Any] | None:
    """What it has swept so far is kept. null if none was running."""
    job = parts().conductor.stop("sweep")
    return shown(job) if job else None


# --- batch inference


@router.get("/batch/infer", tags=["Infer"], summary="The newest batch inference")
def batch_status(all: bool = False, check_if_running: bool = False, user: User = Depends(AnyUser)) -> Any:
    """404 if there is none."""
    found, detail = AsyncTask.status("batch_infer", all, check_if_running)
    if found is None:
        raise NotFound(str(detail))
    return found


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Predict many images and keep the masks as start masks")
def batch_infer(
    model: str,
    images: Literal["all", "labeled", "unlabeled"] = "unlabeled",
    params: Params = None,
    run_sync: bool = False,
    user: User = Depends(Admin),
) -> Any:
    """Slicer shows a start mask when the image is opened; it annotates nothing."""
    parts().infer_task(model)
    request = {"model": model, "images": images}
    wishes = {key: value for key, value in (params or {}).items() if key in ("max_batch_size", "max_workers")}
    for key, value in wishes.items():
        if type(value) is not int or value < 0:
            raise BadInput(f"{key} must be a whole number, 0 for no limit, got {str(value)[:40]!r}.")
    with _place_to_wait(run_sync):
        found, detail = AsyncTask.run("batch_infer", request=request, params=wishes, force_sync=run_sync)
    if found is None:
        raise HTTPException(429, str(detail))
    return found


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the running batch inference")
def stop_batch(user: User = Depends(Admin)) -> Any:
    """null if none was running."""
    return AsyncTask.stop("batch_infer")
