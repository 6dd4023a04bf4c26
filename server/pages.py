"""The pages people see, and what they load: files of web/, under a policy that lets nothing in from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
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


@router.get("/map")
@router.get("/map/{name}")
def map_page(name: str = "") -> FileResponse:
    """The map of the pool, and its modules."""
    return _file(f"map/{name}" if Path(name).suffix in (".js", ".css") else "map.html")


def _file(name: str) -> FileResponse:
    path = _WEB / name
    if not path.is_file() or not path.resolve().is_relative_to(_WEB):
        raise NotFound(f"There is no page {name[:100]!r}.")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
