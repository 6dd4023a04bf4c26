"""Is this machine, and this studies folder, fit for NextSlice?"""

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from datastore.volume_io import SUFFIXES, read_header
from loop.errors import BadInput

_STAND_INS = {"sam2": "+none", "numpymaxflow": "+none", "pydicom-seg": "+highdicom"}
_LOW_DISK_GB = 5


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `way_out` says what to do about a bad one."""

    ok: bool
    what: str
    way_out: str = ""


def examine(studies: str) -> list[Finding]:
    """Everything worth knowing before a start; studies "" leaves the folder out."""
    return [_python(), *_packages(), _device(), *(_folder(Path(studies)) if studies else [])]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding(ok, f"Python {version}", "" if ok else "Use Python 3.11 or 3.12.")


def _packages() -> Iterator[Finding]:
    for name in ("monailabel", "monai", "torch", "numpy", "SQLAlchemy"):
        try:
            yield Finding(True, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{name} is missing", "pip install -r requirements.txt")
    for name, mark in _STAND_INS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        ok = version.endswith(mark)
        yield Finding(ok, f"{name} {version}", "" if ok else f"Install the stand-in: pip install ./third_party/{name}")


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding(True, f"CUDA: {torch.cuda.get_device_name(0)}")
    return Finding(True, "No CUDA device: training runs on the CPU")


def _folder(root: Path) -> Iterator[Finding]:
    if not root.is_dir():
        yield Finding(False, f"{root} is no folder", "Name a folder with volumes, or make one: nextslice demo-data DIR")
        return
    files = [
        path for path in sorted(root.rglob("*")) if path.name.lower().endswith(SUFFIXES) and "labels" not in path.parts
    ]
    hidden = [path for path in files if any(part.startswith(".") for part in path.relative_to(root).parts)]
    files = [path for path in files if path not in hidden]
    yield Finding(
        bool(files), f"{len(files)} volumes in {root}", "" if files else f"Put {', '.join(SUFFIXES)} files there."
    )
    for path in files:
        try:
            read_header(path)
        except BadInput as error:
            yield Finding(False, str(error), "Remove or replace the file; the server leaves it out.")
    free = shutil.disk_usage(root).free / 1e9
    enough = free > _LOW_DISK_GB
    yield Finding(
        enough, f"{free:.0f} GB free at {root}", "" if enough else "Make room: labels and models are kept for ever."
    )
