"""The OHIF viewer at /ohif/, with our configuration and our bar in it; the one that MONAI Label brings at /ohif-monailabel/.

The files come from the set-up (`web/fetch.py`). They are not secret, so they are served to anybody; what they show comes through
/dicom-web and /al, which know their users.
"""

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import monailabel
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from loop.errors import NotFound
from server.page_files import HEADERS, inside, page_file

router = APIRouter(include_in_schema=False)

_WEB = Path(__file__).parent.parent / "web"
_PACKAGE = _WEB / "packages" / "ohif"
_OURS = _WEB / "ohif"
_OUR_SCRIPTS = ("asked.js", "plain_view.js", "viewer.js", "bar.js", "app-config.js")
"""Before OHIF's own, in this order: the configuration, last, names the extension that the others make."""

_FILE_NAME = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")
"""Asks for a file; anything else is a place in the viewer's one page."""

_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
_BUNDLE_SECONDS = 86_400
"""How long a browser uses a piece of OHIF unasked: it changes only with OHIF's version, or with ours."""

_STOCK = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif"
_STOCK_POLICY = _POLICY.replace("'wasm-unsafe-eval'", "'wasm-unsafe-eval' 'unsafe-eval' 'unsafe-inline'").replace(
    "font-src 'self'", "font-src 'self' data:"
)


@router.get("/ohif")
def ohif_root() -> RedirectResponse:
    return RedirectResponse("/ohif/")


@router.get("/ohif/nextslice/{name}")
def ohif_ours(name: str, request: Request) -> Response:
    """Our extension's scripts and style."""
    path = inside(_OURS, name)
    if path is None:
        raise NotFound(f"There is no file {name[:100]!r} of the viewer's extension.")
    return page_file(request, path, {"Content-Security-Policy": _POLICY})


@router.get("/ohif/{path:path}")
def ohif(path: str, request: Request) -> Response:
    """OHIF's files; an address that names no file is a place in its one page."""
    if not (_PACKAGE / "index.html").is_file():
        raise NotFound(
            "The OHIF viewer is not installed here: `make web/packages/fetched` fetches it, and needs npm and a network once."
        )
    headers = {"Content-Security-Policy": _POLICY}
    file = inside(_PACKAGE, path)
    if file is not None and file.name != "index.html":
        if ".bundle." in file.name and file.suffix == ".js":
            headers["Cache-Control"] = f"private, max-age={_BUNDLE_SECONDS}"
        return page_file(request, file, headers)
    if _FILE_NAME.search(path):
        raise NotFound(f"There is no file {path[:100]!r} in OHIF.")
    return Response(
        _page((_PACKAGE / "index.html").read_text()), media_type="text/html", headers={**HEADERS, **headers}
    )


def _page(text: str) -> str:
    """OHIF's page with our scripts in the place of its configuration."""
    scripts = "".join(f'<script src="/ohif/nextslice/{name}"></script>' for name in _OUR_SCRIPTS)
    ours = '<link href="/ohif/nextslice/bar.css" rel="stylesheet">' + scripts
    return text.replace('<script rel="preload" as="script" src="/ohif/app-config.js"></script>', ours)


# --- the viewer that MONAI Label brings: built for /ohif/, changed for its place when it is read


@router.get("/ohif-monailabel")
def stock_root() -> RedirectResponse:
    return RedirectResponse("/ohif-monailabel/")


@router.get("/ohif-monailabel/{path:path}")
def stock(path: str, request: Request) -> Response:
    """MONAI Label's own build of OHIF with its panel: auto-segmentation, next sample."""
    headers = {**HEADERS, "Content-Security-Policy": _STOCK_POLICY}
    file = inside(_STOCK, path)
    if file is None and _FILE_NAME.search(path):
        raise NotFound(f"There is no file {path[:100]!r} in MONAI Label's OHIF.")
    if file is None or file.name == "index.html":
        page = _stock_text("index.html")
        answer = Response(page, media_type="text/html", headers=headers)
        # Its panel would look for the server at port 8000, wherever it is.
        answer.set_cookie(
            "MONAILABEL_SERVER_URL", quote(str(request.base_url), safe=""), path="/ohif-monailabel", samesite="strict"
        )
        return answer
    if file.suffix in (".js", ".css", ".json"):
        kind = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}[file.suffix]
        if ".bundle." in file.name:
            headers["Cache-Control"] = f"private, max-age={_BUNDLE_SECONDS}"
        return Response(_stock_text(file.relative_to(_STOCK.resolve()).as_posix()), media_type=kind, headers=headers)
    return page_file(request, file, headers)


@lru_cache(maxsize=128)
def _stock_text(name: str) -> bytes:
    """A file with its paths changed; its archive is our proxy."""
    text = (_STOCK / name).read_bytes()
    for old, new in (
        (b"/ohif/", b"/ohif-monailabel/"),
        (b"/proxy/dicom/wado", b"/dicom-web"),
        (b"/proxy/dicom/qido", b"/dicom-web"),
    ):
        text = text.replace(old, new)
    return text
