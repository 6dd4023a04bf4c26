"""/dicom-web: the configured archive, for viewers in the browser. They reach it only here, and of it only images and STOW.

The address of a ticket, /dicom-web/tickets/{ticket}/..., is the same archive; what is stored there is known to answer the ticket.
"""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext

import httpx
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from datastore.archive import ArchiveDatastore
from dicom.archive import Account
from dicom.seg_reader import SEG_CLASSES
from dicom.stow import stored_in
from loop.errors import Forbidden, NotFound, Unavailable
from server.door import Annotator, AnyUser, parts

logger = logging.getLogger(__name__)

router = APIRouter(tags=["DICOMweb"])

_WANTED = re.compile(r"(studies|series|instances)(/[A-Za-z0-9][A-Za-z0-9.,_-]*)*")
"""Of what may stand below an archive's DICOMweb address. Orthanc has more there, which sends images to other hosts."""
_STORE = re.compile(r"studies(/[0-9.]{1,64})?")
_PASSED = ("accept", "content-type")
_CONNECT_SECONDS = 5.0
_LARGEST_STORE_ANSWER = 16 << 20
_HEADERS = {
    # What an archive holds comes from anywhere: nothing of it may act as a page of ours, or stay on the disk of a workstation.
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class _Archive:
    """Connections to the archive, of the event loop that made them."""

    def __init__(self, timeout: float) -> None:
        login, headers = Account.from_environment().credentials
        timeouts = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        self._kept = httpx.AsyncClient(timeout=timeouts, auth=login, headers=headers)
        # What is stored is sent once, so never on a connection that the archive may be closing.
        fresh = httpx.Limits(max_keepalive_connections=0)
        self._fresh = httpx.AsyncClient(timeout=timeouts, auth=login, headers=headers, limits=fresh)

    async def get(self, url: str, headers: dict[str, str]) -> httpx.Response:
        """Once more if the archive had closed the connection that was kept."""
        try:
            return await self._kept.send(self._kept.build_request("GET", url, headers=headers), stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return await self._fresh.send(self._fresh.build_request("GET", url, headers=headers), stream=True)

    async def post(self, url: str, headers: dict[str, str], body: AsyncIterator[bytes]) -> httpx.Response:
        return await self._fresh.send(
            self._fresh.build_request("POST", url, headers=headers, content=body), stream=True
        )

    async def close(self) -> None:
        await self._kept.aclose()
        await self._fresh.aclose()


async def close(app: object) -> None:
    """End the connections of an application."""
    found: _Archive | None = getattr(getattr(app, "state", None), "archive", None)
    if found:
        await found.close()


@router.get("/dicom-web/tickets/{ticket}/{path:path}", include_in_schema=False)
async def search_for_ticket(ticket: str, path: str, request: Request, user: User = Depends(AnyUser)) -> Response:
    return await search(path, request, user)


@router.get("/dicom-web/{path:path}", summary="Search the archive, and fetch from it (QIDO-RS, WADO-RS)")
async def search(path: str, request: Request, user: User = Depends(AnyUser)) -> Response:
    """As the archive answers it. 404 if the server was started with a folder, 503 if the archive is down."""
    answer = await _ask(request, path, None)
    kept = {key: answer.headers[key] for key in ("content-type", "content-length") if key in answer.headers}
    if "content-encoding" in answer.headers:
        kept.pop("content-length", None)  # of what httpx has unpacked

    async def pieces() -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_bytes():
                yield piece
        finally:
            await answer.aclose()

    return StreamingResponse(pieces(), answer.status_code, {**kept, **_HEADERS})


@router.post("/dicom-web/tickets/{ticket}/{path:path}", include_in_schema=False)
async def store_for_ticket(ticket: str, path: str, request: Request, user: User = Depends(Annotator)) -> Response:
    asked = await run_sync(parts().loop.ticket, ticket)  # 404 before anything is stored
    return await _store(
        path, request, str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else asked.annotator, ticket
    )


@router.post("/dicom-web/{path:path}", summary="Store instances in the archive (STOW-RS)")
async def store(path: str, request: Request, user: User = Depends(Annotator)) -> Response:
    """As the archive answers it. Below /dicom-web/tickets/{ticket} what is stored is known to answer the ticket."""
    return await _store(path, request, str(user.username) if settings.MONAI_LABEL_AUTH_ENABLE else "", None)


async def _store(path: str, request: Request, annotator: str, ticket: str | None) -> Response:
    if not _STORE.fullmatch(path):
        raise Forbidden("Of the archive, only studies can be stored to: POST /dicom-web/studies.")
    with _expected():
        return await _stored(path, request, annotator, ticket)


async def _stored(path: str, request: Request, annotator: str, ticket: str | None) -> Response:
    answer = await _ask(request, path, request.stream())
    content = bytearray()
    try:
        async for piece in answer.aiter_bytes():
            content += piece
            if len(content) > _LARGEST_STORE_ANSWER:
                raise Unavailable("The archive answers a store with too much; what was sent may be stored.")
    except httpx.HTTPError as error:
        raise Unavailable(f"The archive went away while it stored; send it again. {_kind(error)}") from None
    finally:
        await answer.aclose()
    segs = [sop for kind, sop in stored_in(bytes(content)) if kind in SEG_CLASSES]
    if segs:
        await run_sync(_tell, segs, annotator, ticket)
    kind = answer.headers.get("content-type", "application/dicom+json")
    return Response(bytes(content), answer.status_code, {**_HEADERS, "Content-Type": kind})


def _expected() -> AbstractContextManager[None]:
    """While this lasts, labels that turn up in the archive wait until it is known whose they are."""
    returns = parts().returns
    return returns.storing() if returns else nullcontext()


def _tell(segs: list[str], annotator: str, ticket: str | None) -> None:
    """What the archive took may be labels; they are remembered before the viewer is answered.

    Args:
        segs: their SOP instance UIDs.
        annotator: the account, else whom the ticket was handed to; "" is nobody in particular.
        ticket: whose address they were stored at; None for the archive's own.
    """
    returns = parts().returns
    if returns is None:
        return
    try:
        returns.stored(segs, annotator, ticket)
    except Exception:  # they are stored, and will be noticed: the viewer must not send them again
        logger.exception("What was stored in the archive could not be taken in: %s", segs)


async def _ask(request: Request, path: str, body: AsyncIterator[bytes] | None) -> httpx.Response:
    """Pass a request on; its answer is still to be read.

    Raises:
        NotFound: there is no archive, or nothing of it that is for viewers. Unavailable: it is down, or refuses us.
    """
    here = parts()
    if not isinstance(here.datastore, ArchiveDatastore):
        raise NotFound("There is no archive: the server was started with a folder of volumes.")
    if not _WANTED.fullmatch(path):
        raise NotFound(f"Of the archive, only studies, series and instances are here, got {path[:100]!r}.")
    base = here.datastore.images.archive.url
    query = request.scope["query_string"].decode("latin-1")
    url = f"{base}/{path}" + (f"?{query}" if query else "")
    headers = {key: request.headers[key] for key in _PASSED if key in request.headers}
    headers["accept-encoding"] = "identity"
    state = request.app.state
    if not hasattr(state, "archive"):
        state.archive = _Archive(here.config.archive_timeout)
    try:
        if body is None:
            answer: httpx.Response = await state.archive.get(url, headers)
        else:
            answer = await state.archive.post(url, headers, body)
    except httpx.HTTPError as error:
        raise Unavailable(f"The archive {base} does not answer; try again in a moment. {_kind(error)}") from None
    if answer.status_code in (401, 403) or 300 <= answer.status_code < 400:
        await answer.aclose()  # a browser must not be asked for our password, nor led elsewhere
        raise Unavailable(
            f"The archive {base} refuses us: {answer.status_code}. Its owner knows the name and password."
        )
    return answer


def _kind(error: Exception) -> str:
    return f"({type(error).__name__}: {str(error)[:200]})" if str(error) else f"({type(error).__name__})"
