"""/session: a volume that a viewer opened by hand, kept for a while for inference."""

import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions

from datastore.volume_io import SUFFIXES, read_header
from loop.errors import BadInput, NextSliceError, NotFound, TooLarge
from server.door import AnyUser, parts

router = APIRouter(prefix="/session", tags=["Session"])

_NAME_BYTES = 200
_MEMBERS = 1000
"""An archive of one volume has a few files beside it."""


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
    if not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > _NAME_BYTES:
        raise BadInput(f"The file needs a visible name of at most {_NAME_BYTES} bytes, got {name[:60]!r}.")
    target = folder / name
    with open(target, "wb") as out:
        shutil.copyfileobj(file.file, out)
    return _unpacked(target, folder / "unpacked") if uncompress else target


def _unpacked(archive: Path, folder: Path) -> Path:
    """The one volume of an archive.

    Raises:
        BadInput: no archive, a member that leaves the folder or is a link, or not exactly one volume.
        TooLarge: it would unpack to more than an upload may have.
    """
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                _check_members((member.filename, member.file_size) for member in zipped.infolist())
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                _check_members((_plain(member).name, member.size) for member in tar)
                tar.extractall(folder, filter="data")
    except NextSliceError:
        raise
    # The unpackers raise whatever they meet: encryption, unknown compression, broken streams.
    except Exception as error:  # noqa: BLE001
        raise BadInput(f"The archive could not be unpacked: {str(error)[:200]}") from None
    volumes = [path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES)]
    if len(volumes) != 1:
        raise BadInput(f"The archive must hold one volume ({', '.join(SUFFIXES)}), got {len(volumes)}.")
    return volumes[0]


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A link that stays inside the archive's folder points elsewhere once the volume is moved to its session."""
    if not (member.isfile() or member.isdir()):
        raise BadInput(f"The archive must hold files and folders only, got {member.name[:60]!r}.")
    return member


def _check_members(members: Iterable[tuple[str, int]]) -> None:
    """Raise for the first (name, size) that breaks a rule: nothing after it is read, however large it claims to be."""
    limit, size = parts().config.max_upload_mb << 20, 0
    for number, (name, more) in enumerate(members, 1):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(f"The archive has a member that leaves its folder: {name[:60]!r}.")
        size += more
        if size > limit or number > _MEMBERS:
            raise TooLarge(f"The archive must unpack to at most {limit >> 20} MiB and {_MEMBERS} files.")


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
