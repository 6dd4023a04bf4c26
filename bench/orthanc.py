"""A real Orthanc with DICOMweb as an archive to try things on: only 127.0.0.1 reaches it, and it can be killed and started again.

This version of Orthanc listens on every interface. It therefore gets a network of its own, with nothing in it but a loopback; a
relay (this file, run as a program) carries what comes to a port of our 127.0.0.1 into it.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_INSIDE_PORT = 8042
_START_SECONDS = 60
_STOP_SECONDS = 20
_PIECE = 1 << 18


def missing() -> str | None:
    """Why no Orthanc can be started here; None if it can."""
    for program in ("Orthanc", "unshare", "setpriv", "ip"):
        if not shutil.which(program, path=_path()):
            return f"{program} is not installed"
    if not _PLUGIN.exists():
        return "Orthanc's DICOMweb plugin (orthanc-dicomweb) is not installed"
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, env={"PATH": _path()}).returncode:
        return "this system gives no network of its own to a process (unshare -rn), and Orthanc would listen on all interfaces"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Orthanc:
    """An archive at `url`; use as a context manager, or `start` and `stop`.

    Args:
        folder: for its storage, configuration and log; what is stored survives `stop`.
        settings: of Orthanc's configuration, over ours.
        port: on 127.0.0.1; 0 takes a free one, and keeps it.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        """Of Orthanc's own REST API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of DICOMweb."""
        return f"{self.root}/dicom-web"

    @property
    def log(self) -> Path:
        return self.folder / "orthanc.log"

    def __enter__(self) -> "Orthanc":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "Orthanc":
        """Start, also again, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(), indent=1))
        with socket.create_server(("127.0.0.1", self.port)) as door, open(self.log, "ab") as log:
            self.port = door.getsockname()[1]
            relay = [sys.executable, str(Path(__file__).resolve()), str(door.fileno()), str(configuration)]
            self.process = subprocess.Popen(
                ["unshare", "-rn", "setpriv", "--pdeathsig", "KILL", *relay],
                stdout=log, stderr=log, pass_fds=[door.fileno()], start_new_session=True, env={**os.environ, "PATH": _path()},
            )  # fmt: skip
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"Orthanc ended with {self.process.returncode}: {self.log.read_text()[-2000:]}")
            try:
                if httpx.get(f"{self.root}/system", auth=self.account, timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"Orthanc did not answer: {self.log.read_text()[-2000:]}")

    @property
    def account(self) -> tuple[str, str] | None:
        """(name, password) of the first of RegisteredUsers, where there are any."""
        return next(iter(self.settings.get("RegisteredUsers", {}).items()), None)

    def _configuration(self) -> dict[str, Any]:
        storage = self.folder / "storage"
        storage.mkdir(exist_ok=True)
        return {
            "Name": "archive",
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "HttpPort": _INSIDE_PORT,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self.account),
            "DicomServerEnabled": False,
            "Plugins": [str(_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
            **self.settings,
        }

    def stop(self) -> None:
        """Kill it, as a power cut does; what it had stored is there when it starts again."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(_STOP_SECONDS)
            self.process = None

    def upload(self, path: Path) -> int:
        """Store a DICOM file, or every .dcm file below a folder; how many were stored.

        Raises:
            RuntimeError: Orthanc refused one.
        """
        files = sorted(path.rglob("*.dcm")) if path.is_dir() else [path]
        with httpx.Client(base_url=self.root, auth=self.account, timeout=60) as http:
            for file in files:
                answer = http.post("/instances", content=file.read_bytes())
                if answer.status_code != 200:
                    raise RuntimeError(f"Orthanc refused {file.name}: {answer.status_code} {answer.text[:300]}")
        return len(files)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def _relay(door: socket.socket) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", _INSIDE_PORT)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))
        for end in (inner_writer, writer):
            end.close()

    async with await asyncio.start_server(connected, sock=door) as server:
        await server.serve_forever()


def _main(door: int, configuration: str) -> None:
    """In the network of its own: Orthanc, and the relay to it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "Orthanc", configuration])
    asyncio.run(_relay(socket.socket(fileno=door)))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
