"""Files of pages over HTTP: compressed where a compressed copy is kept, and not sent again to a browser that has them."""

import os
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse

_TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".wasm": "application/wasm",
    ".png": "image/png", ".svg": "image/svg+xml", ".ico": "image/x-icon", ".woff2": "font/woff2",
}  # fmt: skip

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-cache"}


def page_file(request: Request, path: Path, headers: dict[str, str]) -> Response:
    """A file that is there, or 304 if the browser's copy is this one.

    Args:
        headers: further ones; they win over `HEADERS`.
    """
    headers = {**HEADERS, "Vary": "Accept-Encoding", **headers}
    packed = path.with_name(path.name + ".gz")
    if "gzip" in request.headers.get("accept-encoding", "") and packed.is_file():
        headers["Content-Encoding"] = "gzip"
        sent = packed
    else:
        sent = path
    kind = _TYPES.get(path.suffix, "application/octet-stream")
    answer = FileResponse(sent, headers=headers, media_type=kind, stat_result=os.stat(sent))
    if request.headers.get("if-none-match") == answer.headers["etag"]:
        return Response(status_code=304, headers={**headers, "ETag": answer.headers["etag"]})
    return answer


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name below a folder; None if there is none, or it lies elsewhere."""
    path = (folder / name).resolve() if "\0" not in name else folder
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
