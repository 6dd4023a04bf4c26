"""The pages people see, and what they load: files of web/, under a policy that lets nothing in from elsewhere."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from loop.errors import NotFound

router = APIRouter(include_in_schema=False)

_WEB = Path(__file__).parent.parent / "web"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; "
    "worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/annotate")
@router.get("/annotate/{ticket}")
def annotate(ticket: str = "") -> FileResponse:
    """The page opens the ticket itself; a module of it is told by its suffix."""
    if Path(ticket).suffix in (".js", ".css"):
        return _file(f"annotate/{ticket}")
    return _file("annotate.html")


@router.get("/style.css")
def style() -> FileResponse:
    """The one style sheet."""
    return _file("style.css")


@router.get("/packages/niivue/index.js")
def niivue(request: Request) -> FileResponse:
    """NiiVue, as the set-up fetched and packed it."""
    path = _WEB / "packages" / "niivue" / "index.js"
    if not path.is_file():
        raise NotFound("NiiVue is not there. The server's owner fetches it with: python -m web.fetch")
    packed = path.with_name("index.js.gz")
    if packed.is_file() and "gzip" in request.headers.get("accept-encoding", ""):
        headers = _HEADERS | {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return FileResponse(packed, media_type=_TYPES[".js"], headers=headers)
    return _file("packages/niivue/index.js")


def _file(name: str) -> FileResponse:
    path = _WEB / name
    if not path.is_file() or not path.resolve().is_relative_to(_WEB):
        raise NotFound(f"There is no page {name[:100]!r}.")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
