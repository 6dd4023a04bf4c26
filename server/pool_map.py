"""GET /al/map: where the items lie that the model takes for alike, what was asked of them and what is annotated."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse
from monailabel.endpoints.user.auth import User

from loop.embedding import METHODS
from loop.errors import Conflict, unknown
from loop.pool import WHOLE
from loop.pool_map import SIGNALS, STATES, PoolMap, map_file, purpose, read_map, states_of
from loop.signals import FloatArray
from server.door import AnyUser, parts

router = APIRouter(prefix="/al", tags=["Active learning"])

_DIGITS = 4
_TRY_AGAIN_SECONDS = 60.0


@router.get("/map", summary="The pool in two dimensions", responses={202: {"description": "it is being made"}})
def pool_map(
    method: Annotated[str, Query(description="tsne or pca")] = "tsne",
    signal: Annotated[str, Query(description="what makes items alike: bottleneck_features, alges_image")] = (
        "bottleneck_features"
    ),
    user: User = Depends(AnyUser),
) -> Response:
    """`x`, `y` from 0 to 1, `score` (mean entropy in nats), `state` (a place in `states`), `image` (a place in `images`) and
    `slice` (null: whole volume) of each item, and `asked`: reason and round of what is asked for, by place.

    202 with the progress while it is made, for which no training and no sweep waits. `stale`: a newer one is being made.
    """
    here = parts()
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if signal not in SIGNALS:
        raise unknown("signal for a map", signal, SIGNALS)
    digest = here.loop.current_model()
    if digest is None:
        raise Conflict("There is no model yet that could look at the pool: label some slices, and it is trained.")
    state = here.workplace.state
    found, of = read_map(map_file(state, digest, signal, method)), digest
    stale = found is None or found.made_for != purpose(here.loop)
    job = _make(signal, digest, failed_is_fine=found is not None) if stale else None
    if found is None:
        for folder in (state / "maps").glob("[!.]*"):
            if (older := read_map(map_file(state, folder.name, signal, method))) is not None:
                found, of = older, folder.name
    if found is None:
        return JSONResponse({"detail": "The map is being made.", "progress": job["progress"] if job else {}}, 202)
    shown = _shown(found) | {"method": method, "signal": signal, "model": of, "stale": stale}
    return JSONResponse(shown, headers={"Cache-Control": "private, no-cache"})


def _make(signal: str, digest: str, *, failed_is_fine: bool) -> dict[str, Any] | None:
    """The job that makes the map, queued unless it is on its way or failed just now."""
    jobs, now = parts().loop.jobs, parts().loop.clock()
    active = jobs.active("map")
    if same := [job for job in active if job["name"] == signal]:
        return same[0]
    last = jobs.newest("map")
    failed = last is not None and last["state"] == "error" and last["name"] == signal and last["model"] == digest
    if last is not None and failed and now - last["ended_at"] < _TRY_AGAIN_SECONDS:
        if failed_is_fine:
            return None
        raise Conflict(f"The map could not be made: {last['message']}")
    job = jobs.queue("map", signal, {"signal": signal}, "to be seen", exclusive=False)
    parts().conductor.wake()
    return job


def _shown(found: PoolMap) -> dict[str, Any]:
    state, asked = states_of(parts().loop.store, found)
    x, y = _unit(found.points)
    return {
        "images": list(found.images),
        "image": found.volume.tolist(),
        "slice": [None if index == WHOLE else index for index in found.position.tolist()],
        "x": x,
        "y": y,
        "score": [float(f"{value:.4g}") for value in found.score.tolist()],
        "state": state,
        "states": STATES,
        "asked": asked,
        "pool": found.pool,
    }


def _unit(points: FloatArray) -> tuple[list[float], list[float]]:
    """Both coordinates within 0 and 1, in the same unit, the points in the middle."""
    low, high = points.min(0), points.max(0)
    extent = max(float((high - low).max()), 1e-12)
    placed = np.round((points.astype(np.float64) - (low + high) / 2) / extent + 0.5, _DIGITS)
    return placed[:, 0].tolist(), placed[:, 1].tolist()
