"""Where a ticket is annotated: addresses that open a viewer on exactly the slice that is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from monailabel.endpoints.user.auth import User

from datastore.archive import ArchiveDatastore
from dicom.geometry import SeriesGeometry
from loop.errors import Conflict
from loop.shell import sample_of
from server.door import AnyUser, parts

router = APIRouter(tags=["Active learning"])


def ohif_link(
    geometry: SeriesGeometry, labels: Sequence[str], ticket: str, slices: Sequence[int] = (), *, start_series: str = ""
) -> str:
    """OHIF on a series, with a brush, at the first of the slices.

    Args:
        labels: names of the segments, in the order of their values from 1.
        start_series: UID of a series in the archive with the DICOM SEG to begin with.
    """
    query = {"StudyInstanceUIDs": geometry.study_uid, "initialSeriesInstanceUID": geometry.series_uid}
    if slices:
        query["initialSopInstanceUID"] = geometry.sop_uids[slices[0]]
    # Only this protocol goes to the instance.
    query |= {"hangingProtocolId": "default", "ticket": ticket, "segments": ";".join(labels)}
    if start_series:
        query["startSeg"] = start_series
    return "/ohif/segmentation?" + urlencode(query)


def slicer_link(server: str, study_uid: str) -> str:
    """Opens a study in 3D Slicer, where that is registered for slicer://; the archive is reached through our server."""
    query = {"studyUID": study_uid, "dicomweb_endpoint": f"{server}/dicom-web"}
    return "slicer://viewer/?" + urlencode(query)


def ohif_opener(ticket: str) -> str:
    """Leads to `ohif_link`, and fetches the series first if it was not."""
    return f"/al/tickets/{ticket}/ohif"


def of_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What viewers of the archive need of a ticket: `ohif`, the link, and `sop_instances`, of each asked slice; {} for folders.

    Nothing is fetched for it: before the series was, the link is one that fetches it first (`open_ticket`).

    Args:
        sample: as `loop.shell.sample_of` makes it.
    """
    here = parts()
    if not isinstance(here.datastore, ArchiveDatastore):
        return {}
    ticket, slices = sample["ask"]["ticket"], _shown_slices(sample)
    geometry = here.datastore.images.known_geometry(sample["id"])
    if geometry is None or max(slices, default=0) >= len(geometry.sop_uids):
        return {"ohif": ohif_opener(ticket), "sop_instances": None}
    link = ohif_link(geometry, here.config.labels, ticket, slices)
    return {"ohif": link, "sop_instances": [geometry.sop_uids[index] for index in slices]}


@router.get("/al/tickets/{ticket}/ohif", summary="Open a ticket in OHIF")
def open_ticket(ticket: str, user: User = Depends(AnyUser)) -> RedirectResponse:
    """Leads to OHIF on the first asked slice; the series is fetched now if it was not. 409 where images are files."""
    here = parts()
    sample = sample_of(here.loop.ticket(ticket))
    if not isinstance(here.datastore, ArchiveDatastore):
        raise Conflict("OHIF shows images of a DICOMweb archive; this server's are files. Slicer opens those.")
    geometry = here.datastore.images.geometry(sample["id"])
    slices = [index for index in _shown_slices(sample) if index < len(geometry.sop_uids)]
    return RedirectResponse(ohif_link(geometry, here.config.labels, ticket, slices))


def _shown_slices(sample: Mapping[str, Any]) -> list[int]:
    """The asked slices; none for a whole volume."""
    return list(sample["ask"]["slices"]) if sample["ask"]["unit"] == "slice" else []
