"""Files that are there whole or not at all, also after a crash."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop.errors import Conflict


@contextmanager
def atomic(
    path: Path, suffix: str = "", *, durable: bool = True, sync_folder: bool = True, new: bool = False
) -> Iterator[Path]:
    """A temporary path beside `path` that is synced and renamed to it when the block ends without an error.

    Args:
        durable: sync; without it the file survives a crash of the process, and whoever wants more syncs it later.
        sync_folder: sync the new name too; without it that is the caller's to do, once for many files.
        new: what is there already stays.

    Raises:
        FileExistsError: `new`, and there is a file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=suffix or path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            sync_file(temporary)
        os.chmod(temporary, 0o644)
        if new:
            os.link(temporary, path)  # unlike a rename, refused where there is one
            temporary.unlink()
        else:
            os.replace(temporary, path)
        if durable and sync_folder:
            sync_file(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Make a file (or a folder's entries) durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def place_durably(source: Path, target: Path, *, own: bool) -> None:
    """Give a file's content another name, without ever replacing a file; complete and synced under it, or not there.

    Args:
        own: nobody else has the source open or keeps it, so that a second name will do for a copy.
    """
    beside = source
    try:
        if not own or source.stat().st_dev != target.parent.stat().st_dev:
            beside = target.with_name(f".{target.name[:100]}.{time.time_ns()}")
            shutil.copyfile(source, beside)
        sync_file(beside)
        os.link(beside, target)
    except FileExistsError:
        raise Conflict(f"{target.name} is there already and is never overwritten.") from None
    finally:
        if beside != source:
            beside.unlink(missing_ok=True)
    os.chmod(target, 0o644)
    sync_file(target.parent)
