"""/al/studies what an archive, or a program beside it, tells us of."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field

from datastore.archive import ArchiveDatastore, check_uids
from loop.assembly import Assembly
from loop.errors import BadInput, NextSliceError
from server.door import Annotator, parts

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/al", tags=["Active learning"])

_later = ThreadPoolExecutor(1, "told-of-studies")
"""One look at a time: an archive that tells of a thousand series must not be asked by as many at once."""
_SHOWN = 1000
"""Most images that are named in an answer."""


class NewStudies(BaseModel):
    """What is new in the archive; nothing named is: look at everything."""

    model_config = ConfigDict(extra="forbid")

    StudyInstanceUID: str = Field("", max_length=64, description="a study that came, changed, or went")
    SeriesInstanceUID: str = Field("", max_length=64, description="a series of it; empty is all of them")


@router.post("/studies", summary="There is a new study")
def studies(
    response: Response,
    request: Annotated[NewStudies | None, Body()] = None,
    wait: Annotated[bool, Query(description="look before answering; false answers 202 and looks then")] = True,
    user: User = Depends(Annotator),
) -> dict[str, Any]:
    """For an archive that calls when something is stored. Looks now, and answers what is known of it; again is harmless.

    `images` are the series of it that are taken (of a look at everything, those that are new), `new` those not known before,
    `gone` those known before and no longer there. Nothing is fetched. 503 while the archive is down: it is found later.
    An archive that answers nobody while it calls, as Orthanc's scripts make it, calls with `wait=false`.
    """
    here = parts()
    study, series = (request.StudyInstanceUID, request.SeriesInstanceUID) if request else ("", "")
    if (study or series) and not isinstance(here.datastore, ArchiveDatastore):
        raise BadInput("Images are files of a folder here, which have no UIDs: send {} to have the folder looked at.")
    check_uids(study, series)
    if wait:
        return _look(here, study, series)
    _later.submit(_look_later, here, study, series)
    response.status_code = 202
    return {
        "images": [],
        "new": [],
        "gone": [],
        "counts": here.loop.catalogue.counts(),
        "reason": "It is looked for now.",
    }


def _look_later(here: Assembly, study: str, series: str) -> None:
    try:
        _look(here, study, series)
    except NextSliceError as error:
        logger.warning("What the archive told of is left to the next search: %s", error)
    except Exception:  # nobody waits for it, so it is told here
        logger.exception("Looking for what the archive told of failed")


def _look(here: Assembly, study: str, series: str) -> dict[str, Any]:
    before, found = here.loop.catalogue.versions(), None
    if isinstance(here.datastore, ArchiveDatastore) and (study or series):
        found = here.datastore.look_for(study, series)
    else:
        here.datastore.refresh()
    after = here.loop.catalogue.versions()
    here.conductor.wake()
    new, gone = sorted(set(after) - set(before)), sorted(set(before) - set(after))
    return {
        "images": (new if found is None else found)[:_SHOWN],
        "new": (new if found is None else [image for image in found if image not in before])[:_SHOWN],
        "gone": gone[:_SHOWN],
        "counts": here.loop.catalogue.counts(),
        "reason": _why_none() if found == [] else None,
    }


def _why_none() -> str:
    config = parts().config
    conditions = f" that meet {config.archive_conditions}" if config.archive_conditions else ""
    return f"The archive lists no series of {', '.join(config.archive_modalities)}{conditions} under these UIDs."
