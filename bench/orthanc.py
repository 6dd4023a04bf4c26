"""A real Orthanc with DICOMweb as an archive to try things on: only 127.0.0.1 reaches it, and it can be killed and started again.

This version of Orthanc listens on every interface. It therefore gets a network of its own, with nothing in it but a loopback; a
relay (this file, run as a program) carries what comes to a port of our 127.0.0.1 into it, and what its scripts call out of it.
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
from functools import partial
from pathlib import Path
from typing import Any

import httpx

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_INSIDE_PORT = 8042
_START_SECONDS = 60
_STOP_SECONDS = 20
_PIECE = 1 << 18
_THIS = [sys.executable, str(Path(__file__).resolve())]


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
        calls: port of 127.0.0.1 that its scripts call, where `answer_calls` says what is there; 0 is none.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    port: int = 0
    calls: int = 0
    process: subprocess.Popen[bytes] | None = None
    _calls_relay: subprocess.Popen[bytes] | None = None

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
            relay = [*_THIS, "in", str(door.fileno()), str(configuration), str(self._calls), str(self.calls)]
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
    def _calls(self) -> Path:
        """Networks are apart, but a socket that is a file is reached from both."""
        return self.folder / "calls"

    def answer_calls(self, port: int) -> None:
        """From now on, what its scripts call at `calls` is our 127.0.0.1's port."""
        self._calls.unlink(missing_ok=True)
        self._calls_relay = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_THIS, "out", str(self._calls), str(port)],
            env={**os.environ, "PATH": _path()},
        )
        until = time.monotonic() + _START_SECONDS
        while not self._calls.exists():
            if time.monotonic() > until or self._calls_relay.poll() is not None:
                raise RuntimeError("The relay of what Orthanc calls did not start.")
            time.sleep(0.05)

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
        if self._calls_relay is not None:
            self._calls_relay.kill()
            self._calls_relay.wait(_STOP_SECONDS)
            self._calls_relay = None

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


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path | int) -> None:
    """Carry a connection on to a socket that is a file, or to a port of 127.0.0.1."""
    try:
        if isinstance(target, Path):
            inner_reader, inner_writer = await asyncio.open_unix_connection(target)
        else:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))
    for end in (inner_writer, writer):
        end.close()


async def _relay_in(door: socket.socket, calls: Path, port: int) -> None:
    servers = [await asyncio.start_server(partial(_connected, target=_INSIDE_PORT), sock=door)]
    if port:
        servers.append(await asyncio.start_server(partial(_connected, target=calls), "127.0.0.1", port))
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def _relay_out(calls: Path, port: int) -> None:
    await (await asyncio.start_unix_server(partial(_connected, target=port), calls)).serve_forever()


def _main(door: int, configuration: str, calls: Path, port: int) -> None:
    """In the network of its own: Orthanc, and the relays to it and from it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "Orthanc", configuration])
    asyncio.run(_relay_in(socket.socket(fileno=door), calls, port))


if __name__ == "__main__":
    if sys.argv[1] == "in":
        _main(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        asyncio.run(_relay_out(Path(sys.argv[2]), int(sys.argv[3])))
