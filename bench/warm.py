"""Servers by the dozen: processes forked from an interpreter that has imported the libraries already.

A start spends most of its seconds on importing MONAI. A warm process is like a new one in everything else: it imports
MONAI Label, and those of our modules that know it, anew after its environment is set, and has a process group, a folder and
an end of its own.

    python -m bench.warm ADDRESS    # what `Warm` starts: listens on a Unix socket until its starter is gone
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

_FRESH = {
    "bench", "cli", "datastore", "dicom", "infers", "loop", "models", "monailabel", "server", "strategies", "trainers", "web",
}  # fmt: skip
"""Imported anew by every process, but for what `_APART` imports: MONAI Label reads the environment when it is imported."""

_APART = ("loop.preload", "loop.conductor", "trainers.engine", "dicom.archive")
"""Ours that know nothing of MONAI Label."""

_LIBRARIES = (
    "loop.assembly", "fastapi", "jwt", "passlib.handlers.bcrypt", "requests_toolbelt", "sse_starlette",
    "typer", "uvicorn",
)  # fmt: skip
"""With ours, all that ours import of others."""

_START_SECONDS = 120
_POLL_SECONDS = 0.02


class WarmProcess:
    """As `subprocess.Popen`, as far as servers need it."""

    def __init__(self, told: socket.socket, args: Sequence[str], pid: int) -> None:
        self.args, self.pid = args, pid
        self.returncode: int | None = None
        self._told = told

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            self._told.setblocking(False)
            try:
                self._end(self._told.recv(64))
            except BlockingIOError:
                return None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it ended; raises subprocess.TimeoutExpired."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if timeout is not None and until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(_POLL_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _end(self, told: bytes) -> None:
        if not told:
            raise RuntimeError(f"Nobody can say how {self.args} ended: the warm process is gone.")
        self.returncode = int(told)
        self._told.close()


class Warm:
    """Starts `python -m MODULE ...` and `python -c CODE ...` as `WarmProcess`es.

    Args:
        address: of the warm process that another one of these has started, which is shared; empty: start one.
    """

    def __init__(self, address: str = "") -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if not address:
            self._folder = tempfile.TemporaryDirectory(prefix="warm-")
            address = str(Path(self._folder.name) / "warm")
            # Its standard input ends when we do, however that is.
            self._process = subprocess.Popen([sys.executable, "-m", "bench.warm", address], stdin=subprocess.PIPE)
        self.address = address

    def start(
        self,
        command: Sequence[str],
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        errors: Path | None = None,
    ) -> WarmProcess:
        """Run [sys.executable, "-m", module, ...] or [sys.executable, "-c", code, ...] in a session of its own.

        Args:
            log: what it prints goes to the end of it; of errors too, unless `errors` is given.
            folder: it works there.
        """
        if command[0] != sys.executable or command[1] not in ("-m", "-c"):
            raise ValueError(f"Only `python -m` and `python -c` of this interpreter can be warm, got {command[:2]}.")
        wish = {
            "args": command[1:], "log": str(log), "errors": str(errors or log), "folder": str(folder),
            "environment": dict(environment),
        }  # fmt: skip
        told = self._connected()
        told.sendall(json.dumps(wish).encode())
        told.shutdown(socket.SHUT_WR)
        return WarmProcess(told, command, int(told.makefile("rb", buffering=0).readline()))

    def _connected(self) -> socket.socket:
        until = time.monotonic() + _START_SECONDS
        while True:
            told = socket.socket(socket.AF_UNIX)
            try:
                told.connect(self.address)
                return told
            except (FileNotFoundError, ConnectionRefusedError):
                told.close()
                if time.monotonic() > until or (self._process is not None and self._process.poll() is not None):
                    raise RuntimeError("The warm process did not start.") from None
                time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End the warm process, unless it is another's; not what it started."""
        if self._process is not None and self._folder is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._folder.cleanup()


class _Named:
    """A distribution whose metadata need not be parsed for its name."""

    def __init__(self, distribution: metadata.Distribution) -> None:
        self._distribution, self.name = distribution, distribution.name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._distribution, attribute)


def _know_what_is_installed() -> None:
    """MONAI Label asks for the names of all distributions twice when it is imported: half a second."""
    search, named = metadata.distributions, [_Named(found) for found in metadata.distributions()]

    def distributions(**conditions: Any) -> Iterable[Any]:
        return search(**conditions) if conditions else named

    metadata.distributions = distributions


def _listen(address: str) -> None:
    """The warm process's life."""
    for module in _APART:
        importlib.import_module(module)
    if "monailabel" in sys.modules:
        raise RuntimeError(f"One of {_APART} imports MONAI Label.")
    kept = frozenset(sys.modules)
    for module in _LIBRARIES:
        importlib.import_module(module)
    _know_what_is_installed()
    gc.collect()
    gc.freeze()  # else each fork copies what its collector looks at, two seconds of it at its end
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            ready = select.select([0, woken, listener.fileno()], [], [])[0]
            if 0 in ready:
                return
            if woken in ready:
                os.read(woken, 4096)
                for pid in list(running):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        _tell(running.pop(pid), os.waitstatus_to_exitcode(status))
            if listener.fileno() in ready:
                told = listener.accept()[0]
                wish = json.loads(told.makefile("rb").read())
                pid = os.fork()
                if not pid:
                    for connection in (listener, told, *running.values()):
                        connection.close()
                    for end in (woken, wake):
                        os.close(end)
                    _become(kept, **wish)
                running[pid] = told
                told.sendall(b"%d\n" % pid)


def _tell(told: socket.socket, status: int) -> None:
    with told:
        try:
            told.sendall(str(status).encode())
        except BrokenPipeError:
            return  # nobody waits for it


def _become(
    kept: Collection[str], args: Sequence[str], log: str, errors: str, folder: str, environment: dict[str, str]
) -> NoReturn:
    """Be `python args...` from here on, with the modules `kept` as they are."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    with open(log, "ab") as out, open(errors, "ab") as wrong, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(wrong.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    own = {package for package in _FRESH if Path(folder, package).exists()}  # a folder's own come first
    for name in list(sys.modules):
        package = name.partition(".")[0]
        if package in own or (package in _FRESH and name not in kept):
            del sys.modules[name]
    option, sys.argv = args[0], list(args[1:])
    if option == "-m":
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = option
        sys.path.insert(0, folder)
        exec(args[1], {"__name__": "__main__"})
    raise SystemExit  # with all that an interpreter does at its end


if __name__ == "__main__":
    _listen(sys.argv[1])
