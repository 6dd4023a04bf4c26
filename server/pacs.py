"""/al/studies and /al/tell: what a PACS, or a program beside it, tells us. New studies, and labels in bulk."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field

from datastore.archive import ArchiveDatastore
from loop.errors import BadInput
from server.door import Annotator, parts

router = APIRouter(prefix="/al", tags=["Active learning"])

_SHOWN = 1000
"""Most images that are named in an answer."""


class NewStudies(BaseModel):
    """What is new in the archive; nothing named is: look at everything."""

    model_config = ConfigDict(extra="forbid")

    StudyInstanceUID: str = Field("", max_length=64, description="a study that came, changed, or went")
    SeriesInstanceUID: str = Field("", max_length=64, description="a series of it; empty is all of them")


@router.post("/studies", summary="There is a new study")
def studies(request: Annotated[NewStudies | None, Body()] = None, user: User = Depends(Annotator)) -> dict[str, Any]:
    """For an archive that calls when something is stored. Looks now, and answers what is known of it; again is harmless.

    `images` are the series of it that are taken (of a look at everything, those that are new), `new` those not known before,
    `gone` those known before and no longer there. Nothing is fetched. 503 while the archive is down: it is found later.
    """
    here = parts()
    study, series = (request.StudyInstanceUID, request.SeriesInstanceUID) if request else ("", "")
    before, found = here.loop.catalogue.versions(), None
    if not (study or series):
        here.datastore.refresh()
    elif isinstance(here.datastore, ArchiveDatastore):
        found = here.datastore.look_for(study, series)
    else:
        raise BadInput("Images are files of a folder here, which have no UIDs: send {} to have the folder looked at.")
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
