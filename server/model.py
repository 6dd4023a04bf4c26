"""/model: the weights as a file. Reading is open; replacing them over HTTP is off unless switched on."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import file_checksum

from infers.engine import Segmenter, pick_device
from loop.errors import Forbidden, NotFound, unknown
from models.heads import of_heads
from models.weights import read_weights
from server.door import Admin, parts

router = APIRouter(prefix="/model", tags=["Model"])


def _known(model: str) -> None:
    if model != parts().model:
        raise unknown("model", model, [parts().model])


def _current(model: str) -> str:
    _known(model)
    digest = parts().weights.current()
    if digest is None:
        raise NotFound(f"The model {model!r} has not been trained yet.")
    return digest


def _allowed(what: str) -> None:
    if not parts().config.allow_model_upload:
        raise Forbidden(
            f"{what} weights over HTTP is switched off. The server's owner can allow it with --conf allow_model_upload true."
        )


@router.get("/{model}", summary="Download the current weights")
def download(model: str, user: User = Depends(Admin)) -> FileResponse:
    """A PyTorch file of plain tensors."""
    return FileResponse(parts().weights.path(_current(model)), filename=f"{model}.pt")


@router.get("/info/{model}", summary="What is known of the current weights")
def info(model: str, user: User = Depends(Admin)) -> dict[str, Any]:
    """Digest, checksum, metrics, parent, seed, settings."""
    digest = _current(model)
    card = parts().weights.card(digest)
    return {"checksum": file_checksum(parts().weights.path(digest)), "modified_time": int(card["published_at"]), **card}


@router.put("/{model}", summary="Replace the weights (off by default)")
def upload(model: str, file: Annotated[UploadFile, File()], user: User = Depends(Admin)) -> dict[str, Any]:
    """A PyTorch file of plain tensors that fits the model; what was current can be rolled back to."""
    _known(model)
    _allowed("Replacing")
    here = parts()
    weights = read_weights(file.file.read())
    Segmenter(here.spec, weights, device=pick_device("cpu"))  # raises if they do not fit
    card: dict[str, Any] = {
        "model": model,
        "metrics": {},
        "uploaded_as": file.filename,
        "heads": list(of_heads(weights)),
        **({"plans": here.spec.plans} if here.spec.plans else {}),
    }
    digest = here.weights.publish(weights, card, here.loop.clock())
    here.loop.published(model, digest, {}, how="uploaded")
    here.conductor.wake()
    return {"digest": digest}


@router.delete("/{model}", summary="Refused: weights are kept")
def delete(model: str, user: User = Depends(Admin)) -> None:
    """Roll back with POST /al/models/{digest}/rollback instead."""
    _known(model)
    raise Forbidden("Weights are never deleted. Go back to earlier ones with POST /al/models/{digest}/rollback.")
