"""The pages people see, and what they load: files of web/, under a policy that lets nothing in from elsewhere.

The files are not secret, so they are served to anybody; what they show comes through the REST API, which knows its users.
"""

from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request, Response

from loop.errors import NotFound
from server.page_files import inside, page_file

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).parent.parent / "web"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_VOLUME_POLICY = POLICY.replace("connect-src 'self'", "connect-src 'self' data:")
"""NiiVue reads its built-in font and shaders from data: addresses."""

_PARTS = (".js", ".css", ".svg", ".png")
"""What pages load; their HTML and the set-up's Python lie beside it and are not served by name."""


@router.get("/")
def dashboard(request: Request) -> Response:
    """How far it is, and what runs."""
    return _page(request, "dashboard")


@router.get("/worklist")
def worklist(request: Request) -> Response:
    """Who should annotate what."""
    return _page(request, "worklist")


@router.get("/map")
@router.get("/map/{name}")
def pool_map(request: Request, name: str = "") -> Response:
    """The pool in two dimensions, and the page's modules."""
    return part(request, f"map/{name}") if name else _page(request, "map")


@router.get("/annotate")
@router.get("/annotate/{ticket}")
def annotate(request: Request, ticket: str = "") -> Response:
    """The page opens the ticket itself; a module of it is told by its suffix."""
    if PurePosixPath(ticket).suffix in _PARTS:
        return part(request, f"annotate/{ticket}")
    return _page(request, "annotate", _VOLUME_POLICY)


@router.get("/style.css")
def style(request: Request) -> Response:
    """The one style sheet."""
    return part(request, "style.css")


@router.get("/packages/{path:path}")
def package(request: Request, path: str) -> Response:
    """What the set-up fetched."""
    return part(request, f"packages/{path}")


@router.get("/web/{path:path}")
def part(request: Request, path: str) -> Response:
    """A script, style or picture of a page."""
    file = inside(WEB, path)
    if file is None or file.suffix not in _PARTS:
        raise NotFound(f"There is no file {path[:100]!r} of a page.")
    return page_file(request, file, {"Content-Security-Policy": POLICY})


def _page(request: Request, name: str, policy: str = POLICY) -> Response:
    file = inside(WEB, f"{name}.html")
    if file is None:
        raise NotFound(f"There is no page {name!r} here.")
    return page_file(request, file, {"Content-Security-Policy": policy, "X-Frame-Options": "DENY"})
