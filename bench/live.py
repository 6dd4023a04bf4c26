"""Servers as processes of their own, and how long they take to answer."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
from tqdm import tqdm

Key = TypeVar("Key")

CLIENTS = 8
_HOST = "127.0.0.1"
_START_SECONDS = 300
_STOP_SECONDS = 20
_ANSWER_SECONDS = 600
_PAUSE_SECONDS = 1.0


@contextmanager
def one_core() -> Iterator[str]:
    """This process and all that it starts on one core, so that the other cores' work does not reach the figures.

    Yields where that is, in words; the system may have no pinning.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield "not pinned (this system cannot)"
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield f"everything pinned to core {min(before)}"
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Server:
    """A server that runs while the block does.

    Attributes:
        command: what starts it; the address is added.
        home: a folder for its log and whatever it keeps in the user's home.
        started: when the process was started (time.monotonic).
    """

    command: Sequence[str]
    home: Path
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lambda: _free_port())
    started: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", *self.command, "--host", _HOST, "--port", str(self.port)]
        environment = {**os.environ, **self.env, "HOME": str(self.home)}
        self.started = time.monotonic()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.home, env=environment, start_new_session=True
            )
        try:
            self._await_answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it and everything it started: its session is its own."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _await_answer(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/info/", timeout=_ANSWER_SECONDS).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"{' '.join(self.command)} did not start: {self._log.read_text()[-3000:]}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It and what it started stand still while the block runs: what they do of themselves is in nobody's times."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{_HOST}:{self.port}"

    @property
    def _log(self) -> Path:
        return self.home / "server.log"

    def request(self, method: str, path: str, **content: Any) -> httpx.Request:
        """A request with its body encoded, ready to be sent."""
        request = httpx.Request(method, f"{self.url}{path}", **content)
        request.read()
        return request

    def get(self, path: str) -> Any:
        """The JSON answer of a GET."""
        return send(self.request("GET", path))[1]

    def processes(self) -> list[psutil.Process]:
        """The server, then what it started."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def send(request: httpx.Request, ready: Callable[[], object] = lambda: None) -> tuple[float, Any]:
    """Milliseconds from sending to the last byte of the answer, and the answer's JSON.

    By the standard library's client, on an open connection: a client that is slow itself would make servers look alike.

    Args:
        ready: called between connecting and sending.

    Raises:
        RuntimeError: the answer is not 200.
    """
    connection = http.client.HTTPConnection(_HOST, request.url.port, timeout=_ANSWER_SECONDS)
    connection.connect()
    try:
        ready()
        began = time.perf_counter()
        connection.request(request.method, request.url.raw_path.decode(), request.content, dict(request.headers))
        answer = connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - began
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{request.method} {request.url} answered {answer.status}: {content[:500]!r}")
    return 1000 * took, json.loads(content)


@dataclass(frozen=True)
class Lane:
    """One kind of request to one server.

    Attributes:
        server: who answers them.
        requests: as many as are measured, each a different one where that matters.
        check: raises RuntimeError if an answer is not the one that is to be measured.
    """

    server: Server
    requests: Iterator[httpx.Request]
    check: Callable[[Any], None]

    def alone(self) -> float:
        """Milliseconds of one request."""
        took, answer = send(next(self.requests))
        self.check(answer)
        return took

    def together(self, clients: ThreadPoolExecutor) -> float:
        """Answers a second when CLIENTS requests are sent at the same moment."""
        line = threading.Barrier(CLIENTS + 1, timeout=_ANSWER_SECONDS)
        sent = [clients.submit(send, next(self.requests), line.wait) for _ in range(CLIENTS)]
        line.wait()
        began = time.perf_counter()
        answers = [future.result()[1] for future in sent]
        took = time.perf_counter() - began
        for answer in answers:
            self.check(answer)
        return CLIENTS / took


@dataclass(frozen=True)
class Effort:
    """How often each request is made: `blocks` of `calls` by one client, then `rounds` of CLIENTS at once."""

    blocks: int
    calls: int
    rounds: int


@dataclass
class Times:
    """What a lane took.

    Attributes:
        ms: of each request of one client.
        per_second: answers a second of each round of CLIENTS at once.
    """

    ms: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


def race(lanes: Mapping[Key, Lane], effort: Effort, title: str) -> dict[Key, Times]:
    """The times of each lane, a block of each in turns, so that whatever slows the machine slows all of them.

    The servers of the other lanes stand still meanwhile: nobody runs several of them on one core.
    Before a block the disk is brought up to date: a sync writes what other processes left in the file system's journal
    too, and who syncs its own files must not pay for those that others do not sync.
    A block begins with a pause and a request that does not count. What a server still does after it has answered is
    thus in its own next time, as it would be with the next viewer, and not in that of the other server.
    """
    found = {name: Times() for name in lanes}
    with (
        tqdm(total=effort.blocks + effort.rounds, desc=title, unit="turn", leave=False, disable=None) as bar,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        for turn in range(effort.blocks + effort.rounds):
            for name, lane in lanes.items():
                with ExitStack() as alone:
                    for other in lanes.values():
                        if other.server is not lane.server:
                            alone.enter_context(other.server.paused())
                    os.sync()
                    time.sleep(_PAUSE_SECONDS)
                    lane.alone()
                    if turn < effort.blocks:
                        found[name].ms += [lane.alone() for _ in range(effort.calls)]
                    else:
                        found[name].per_second.append(lane.together(clients))
            bar.update()
    return found
