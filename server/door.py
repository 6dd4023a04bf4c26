"""What every request passes: who it is, how large it may be, and how errors are told."""

import json
import logging
import math
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from pydantic import AfterValidator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loop.assembly import Assembly
from loop.errors import BadInput, NextSliceError
from loop.shell import check_annotator
from server.accounts import Role

logger = logging.getLogger(__name__)

JSON_LIMIT = 1 << 20
"""Bytes of a request body that is no file upload: commands are small."""

_UPLOADS = {
    b"multipart/form-data": ("/datastore", "/infer/", "/model/", "/session/", "/al/tell"),
    b"multipart/related": ("/dicom-web/",),
}
"""Where files are uploaded, by how they are wrapped."""
_JSON_LEVELS = 32

AnyUser = Role(settings.MONAI_LABEL_AUTH_ROLE_USER)
Annotator = Role(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)
Admin = Role(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)


def parts() -> Assembly:
    """The running app's parts."""
    assembly: Assembly = app_instance().parts
    return assembly


def annotator_of(user: User, client_id: object) -> str:
    """Who acts: the account where accounts are on, else what the client says of itself."""
    return str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else check_annotator(client_id)


def check_json(value: Any, levels: int = _JSON_LEVELS) -> Any:
    """The value, if it can be kept and sent again as it came.

    Python reads NaN, halves of surrogate pairs and any depth, but cannot write them: kept once, they would break every
    later answer that lists them.

    Raises:
        BadInput: NaN or infinite numbers, text that is not Unicode, or too many levels.
    """
    if levels == 0:
        raise BadInput(f"JSON must be at most {_JSON_LEVELS} levels deep.")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"JSON must hold finite numbers, got {value}.")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput(f"JSON must hold Unicode text, got {value[:40]!r}.") from None
    if isinstance(value, dict):
        check_json([*value.keys(), *value.values()], levels)
    elif isinstance(value, list):
        for inner in value:
            check_json(inner, levels - 1)
    return value


Params = Annotated[dict[str, Any] | None, Body(), AfterValidator(check_json)]
"""A request body of wishes; what is not known of them is left to other clients and servers."""


def parse_params(text: str) -> dict[str, Any]:
    """A form's `params`.

    Raises:
        BadInput: not a JSON object, or one that could not be sent again (`check_json`).
    """
    try:
        params = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"params must be a JSON object: {str(error)[:200]}.") from None
    if not isinstance(params, dict):
        raise BadInput(f"params must be a JSON object, got {type(params).__name__}.")
    check_json(params)
    return params


@contextmanager
def new_file(suffix: str) -> Iterator[Path]:
    """The name of a file to write, ours alone, which errors can be told with; gone after the block."""
    folder = parts().workplace.state / "incoming" / uuid.uuid4().hex
    folder.mkdir()
    target = folder / f"upload{suffix}"
    try:
        yield target
    finally:
        target.unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def received(file: UploadFile, suffix: str) -> Iterator[Path]:
    """The upload as a file of ours with a name of ours; gone after the block."""
    with new_file(suffix) as target:
        with open(target, "wb") as out:
            shutil.copyfileobj(file.file, out, 1 << 20)
        yield target


async def told(request: Request, error: Exception) -> JSONResponse:
    """A NextSliceError as {"detail": sentence} with its status."""
    assert isinstance(error, NextSliceError)
    if error.status >= 500:
        logger.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": str(error)}, error.status)


async def told_invalid(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 without the input: what was sent may be large, or be nothing that JSON can hold."""
    assert isinstance(error, RequestValidationError)
    kept = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
    return JSONResponse({"detail": kept}, 422)


class SizeLimit:
    """Refuses bodies over the limit with 413, before and while they arrive: uploads have one, everything else another."""

    def __init__(self, app: ASGIApp, max_upload: int) -> None:
        self.app, self.max_upload = app, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        wrapped = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        limit = self.max_upload if scope["path"].startswith(_UPLOADS.get(wrapped, ())) else JSON_LIMIT
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await _refuse(limit, scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, _too_large(limit))  # FastAPI lets only its own kind through its body parser
            return message

        await self.app(scope, counted, send)


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"detail": _too_large(limit)}, 413)(scope, receive, send)


def _too_large(limit: int) -> str:
    return (
        f"The request must be at most {limit / 2**20:g} MiB. Larger uploads can be allowed with --conf max_upload_mb."
    )
