"""/session: a volume that a viewer opened by hand, kept for a while for inference."""

import shutil
import tarfile
import uuid
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions

from datastore.volume_io import SUFFIXES, read_header
from loop.errors import BadInput, NotFound, TooLarge
from server.door import AnyUser, parts

router = APIRouter(prefix="/session", tags=["Session"])


def _sessions() -> Sessions:
    sessions = app_instance().sessions()
    if sessions is None:
        raise NotFound("Sessions are switched off (MONAI_LABEL_SESSIONS).")
    return sessions


def _session(session_id: str, *, touch: bool = False) -> SessionInfo:
    try:
        uuid.UUID(session_id)
    except ValueError:
        raise NotFound(f"There is no session {session_id[:60]!r}.") from None
    found = _sessions().get_session(session_id, update_ts=touch)
    if not found:
        raise NotFound(f"There is no session {session_id!r}.")
    return found


def session_image(session_id: str) -> Path:
    """The session's volume.

    Raises:
        NotFound: no such session.
    """
    return Path(_session(session_id, touch=True).image)


@router.get("/{session_id}", summary="A session, or its volume")
def get_session(session_id: str, update_ts: bool = False, image: bool = False, user: User = Depends(AnyUser)) -> Any:
    """`image=true` downloads the volume."""
    found = _session(session_id, touch=update_ts)
    return FileResponse(found.image, filename=Path(found.image).name) if image else _shown(found)


@router.put("/", summary="Open a session with a volume")
def create_session(
    files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: int = 0, user: User = Depends(AnyUser)
) -> dict[str, Any]:
    """One volume, or with `uncompress` one archive (.zip, .tar, .tar.gz) that holds one."""
    if len(files) != 1:
        raise BadInput(f"A session takes one file, got {len(files)}. Convert a series to one volume first.")
    folder = parts().workplace.state / "incoming" / uuid.uuid4().hex
    folder.mkdir()
    try:
        volume = _receive(files[0], folder, uncompress)
        read_header(volume)
        session_id, info = _sessions().add_session(str(volume), max(0, expiry))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"session_id": session_id, "session_info": _shown(info)}


def _receive(file: UploadFile, folder: Path, uncompress: bool) -> Path:
    """The uploaded volume within the folder."""
    name = PurePosixPath((file.filename or "").replace("\\", "/")).name
    if not name or name.startswith("."):
        raise BadInput(f"The file needs a name, got {(file.filename or '')[:60]!r}.")
    target = folder / name
    with open(target, "wb") as out:
        shutil.copyfileobj(file.file, out)
    return _unpacked(target, folder / "unpacked") if uncompress else target


def _unpacked(archive: Path, folder: Path) -> Path:
    """The one volume of an archive.

    Raises:
        BadInput: no archive, a member that leaves the folder, or not exactly one volume.
    """
    folder.mkdir()
    limit = parts().config.max_upload_mb << 20
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, folder, limit)
        else:
            with tarfile.open(archive) as tar:
                _check_size(sum(member.size for member in tar.getmembers()), limit)
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise BadInput(f"The archive could not be unpacked: {str(error)[:200]}") from None
    volumes = [path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    if len(volumes) != 1:
        raise BadInput(f"The archive must hold one volume ({', '.join(SUFFIXES)}), got {len(volumes)}.")
    return volumes[0]


def _unzip(archive: Path, folder: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as zipped:
        _check_size(sum(member.file_size for member in zipped.infolist()), limit)
        for member in zipped.infolist():
            if not (folder / member.filename).resolve().is_relative_to(folder.resolve()):
                raise BadInput(f"The archive has a member that leaves its folder: {member.filename[:60]!r}.")
        zipped.extractall(folder)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"The archive must unpack to at most {limit >> 20} MiB, got {size >> 20} MiB.")


@router.delete("/{session_id}", summary="Close a session")
def remove_session(session_id: str, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """Its volume is deleted."""
    found = _session(session_id)
    _sessions().remove_session(session_id)
    return _shown(found)


def _shown(found: SessionInfo) -> dict[str, Any]:
    """Without the server's own paths."""
    shown = {key: value for key, value in found.to_json().items() if key not in ("path", "image")}
    return {**shown, "image": Path(found.image).name}
