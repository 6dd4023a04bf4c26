"""POST /activelearning/{strategy}: what Slicer's and OHIF's "Next Sample" call."""

from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Depends
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance

from loop.errors import BadInput, unknown
from loop.shell import ServedStrategy
from server import links
from server.door import AnyUser, Params, annotator_of, parts

router = APIRouter(prefix="/activelearning", tags=["ActiveLearning"])


@router.post("/{strategy}", summary="The next image to annotate, and which of its slices")
def next_sample(strategy: str, params: Params = None, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Lease the strategy's best free items of one image to `client_id`, and describe them under `ask`.

    A named client that still holds a ticket gets it again (`next: "another"` releases it and moves on). {} means that
    nothing is left to ask for now.
    """
    params = params or {}
    served: dict[str, ServedStrategy] = app_instance()._strategies
    if strategy not in served:
        raise unknown("strategy", strategy, sorted(served))
    if params.get("strategy", strategy) != strategy:
        raise BadInput(
            f"The strategy is the one in the path, {strategy!r}; the body names {str(params['strategy'])[:40]!r}."
        )
    sample = served[strategy]({**params, "client_id": annotator_of(user, params.get("client_id"))})
    if not sample:
        return {}
    image = parts().loop.catalogue.image(sample["id"])
    datastore = parts().datastore
    path = datastore.root / image["path"]
    local = {"path": str(path)} if parts().config.share_paths else {}
    # `name` is the file name of Slicer's download: without its suffix Slicer cannot read it.
    linked = links.of_sample(sample)
    # OHIF's panel of MONAI Label shows one link, under this name.
    shown = {"RetrieveURL": linked["ohif"]} if linked else {}
    sample["ask"].update(linked)
    return {**datastore.viewer_facts(image), **shown, **sample, **local, "name": PurePosixPath(image["path"]).name}
