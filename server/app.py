"""The whole application: every router, and how it takes the place of MONAI Label's own."""

import logging
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import monailabel
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from monailabel.config import settings
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance, clear_cache
from starlette.middleware import Middleware

from loop.assembly import Assembly
from loop.errors import Forbidden, NextSliceError, NotFound
from server import (
    accounts,
    activelearning,
    al,
    datastore,
    dicomweb_proxy,
    door,
    infer,
    jobs,
    links,
    model,
    ohif,
    pacs,
    pages,
    pool_map,
    previews,
    returns,
    seg,
    session,
    tell,
    worklist,
)
from server.door import Admin, AnyUser, parts, told, told_invalid

logger = logging.getLogger(__name__)

_STATIC = Path(monailabel.__file__).parent / "endpoints" / "static"

misc = APIRouter()


@misc.get("/info/", tags=["App"], summary="What the app offers: labels, models, strategies, trainers")
def info(user: User = Depends(AnyUser)) -> dict[str, Any]:
    """As MONAI Label's viewers read it."""
    found: dict[str, Any] = app_instance().info()
    return found


@misc.get("/logs/", tags=["Others"], summary="The end of the server's log (off by default)")
def logs(lines: Annotated[int, Query(ge=1, le=10_000)] = 300, user: User = Depends(Admin)) -> PlainTextResponse:
    """Plain text. It names images and annotators, so it is off unless switched on."""
    if not parts().config.allow_logs:
        raise Forbidden(
            "The log over HTTP is switched off. The server's owner can allow it with --conf allow_logs true."
        )
    file = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if not file.is_file():
        raise NotFound("There is no log file.")
    with open(file, errors="replace") as text:
        return PlainTextResponse("".join(deque(text, lines)))


@misc.post("/reload", include_in_schema=False)
def reload(user: User = Depends(Admin)) -> dict[str, Any]:
    """Rebuild the app with the same configuration."""
    here = parts()
    if not here.config.allow_reload:
        raise Forbidden(
            "Reloading over HTTP is switched off. The server's owner can allow it with --conf allow_reload true."
        )
    here.close()
    clear_cache()
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    return {}


@misc.get("/favicon.ico", include_in_schema=False)
def favicon() -> FileResponse:
    return FileResponse(_STATIC / "favicon.ico", media_type="image/x-icon")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    yield
    await dicomweb_proxy.close(app)
    instance.parts.close()


def create_app() -> FastAPI:
    """The application that `nextslice serve` runs."""
    app = FastAPI(
        title="NextSlice",
        description="Active learning for medical images: asks for what now matters most, takes the labels back, retrains.",
        docs_url=None,
        redoc_url="/docs",
        lifespan=_lifespan,
        exception_handlers={NextSliceError: told, RequestValidationError: told_invalid},
    )
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    if settings.MONAI_LABEL_AUTH_ENABLE:
        app.include_router(accounts.router)
    # previews and seg before al, which has the beginnings of their paths.
    for module in (
        activelearning,
        datastore,
        infer,
        jobs,
        session,
        model,
        previews,
        pool_map,
        seg,
        returns,
        worklist,
        pacs,
        tell,
        al,
        links,
        dicomweb_proxy,
        ohif,
        pages,
    ):
        app.include_router(module.router)
    app.include_router(misc)
    return app


def middleware(assembly: Assembly) -> list[Middleware]:
    """What every request passes, outermost first."""
    found = [Middleware(door.SizeLimit, max_upload=assembly.config.max_upload_mb << 20)]
    if assembly.config.cors_origins:
        origins = list(assembly.config.cors_origins)
        found.insert(0, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return found


def install(assembly: Assembly) -> None:
    """Give the running application our middleware, and, where MONAI Label's own started us, our routes instead of its.

    `monailabel start_server` runs monailabel.app:app, whose endpoints block the server and trust every path. It calls the
    app only after it has been built, so the routes are exchanged here, before the first request.
    """
    app = running_app()
    if app is not application:
        app.router = application.router
        app.exception_handlers.update(application.exception_handlers)
        app.title, app.description, app.openapi_schema = application.title, application.description, None
    app.user_middleware = middleware(assembly)
    app.middleware_stack = None  # built anew, with these, at the next request
    if not settings.MONAI_LABEL_AUTH_ENABLE:
        logger.info("No accounts are switched on: everybody who reaches this server may use it")


def running_app() -> FastAPI:
    """The application that uvicorn runs in this process: ours, or MONAI Label's."""
    stock = sys.modules.get("monailabel.app")
    if stock is not None:
        app: FastAPI = stock.app
        return app
    return application


application = create_app()
