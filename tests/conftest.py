"""Fixtures: phantom studies, and real servers in real processes on 127.0.0.1."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from bench.orthanc import Orthanc, missing
from bench.warm import Warm, WarmProcess
from loop.forking import fork_server_from_here
from loop.store import Store, metadata

# What takes seconds to import is imported where it is used: the process that hands the tests out needs none of it.

ROOT = Path(__file__).parent.parent
_START_SECONDS = 120

_WARM = "NEXTSLICE_TESTS_WARM"
"""Address of the process that servers are forked from, where several processes of tests share it."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stock_is_right_too: stock MONAI Label passes it as well (tests/test_door.py)")
    if hasattr(config, "workerinput"):
        import loop.preload  # noqa: F401 - tests need it too, and the fork server then shares it

        fork_server_from_here()
    elif config.getoption("numprocesses", None):
        os.environ[_WARM] = warm().address


_warm: list[Warm] = []


def warm() -> Warm:
    """The process that servers are forked from; one for all tests, started before them or with the first server."""
    if not _warm:
        _warm.append(Warm(os.environ.get(_WARM, "")))
    return _warm[0]


def pytest_unconfigure() -> None:
    for process in _warm:
        process.close()


# Below those that the system gives to connections, which may take a free one before a server does.
_ports = itertools.cycle(range(20_000 + os.getpid() % 100 * 100, 20_100 + os.getpid() % 100 * 100))


def free_port() -> int:
    """A port that nobody listens on now, and that no other process of tests is likely to try."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("a cycle does not end")


@dataclass
class LiveServer:
    """`nextslice serve` (or another command) as a process of its own.

    Attributes:
        root: the demo folder: images/ is served, labels/ is the ground truth.
        studies: what is served in the images' place, such as an archive's address.
        ready: what is asked until it is answered.
    """

    root: Path
    conf: dict[str, str] = field(default_factory=dict)
    studies: str = ""
    command: Callable[["LiveServer"], list[str]] | None = None
    env: dict[str, str] = field(default_factory=dict)
    ready: str = "/info/"
    port: int = field(default_factory=free_port)
    process: WarmProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def truth(self) -> Path:
        return self.root / "labels"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    def start(self) -> "LiveServer":
        """Start and wait until it answers and has looked at the images."""
        command = self.command(self) if self.command else self._serve()
        environment = {**os.environ, "HOME": str(self.root), **self.env}
        self.process = warm().start(command, self.log, self.root, environment)
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"The server ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{self.url}{self.ready}", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.03)
        raise RuntimeError(f"The server did not answer: {self.log.read_text()[-3000:]}")

    def _serve(self) -> list[str]:
        pairs = [part for key, value in self.conf.items() for part in ("--conf", key, value)]
        studies = self.studies or str(self.images)
        return [sys.executable, "-m", "cli", "serve", "--studies", studies, "--port", str(self.port), *pairs]

    def kill(self) -> None:
        """kill -9, the server alone; its child processes must end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it and everything it started."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def client(self) -> httpx.Client:
        """HTTP to this server."""
        return httpx.Client(base_url=self.url, timeout=300)

    def wait_for(
        self, what: str, ready: Callable[[dict[str, object]], bool], seconds: float = 300
    ) -> dict[str, object]:
        """/al/progress once `ready` says yes."""
        until = time.monotonic() + seconds
        with self.client() as http:
            while time.monotonic() < until:
                progress: dict[str, object] = http.get("/al/progress").json()
                if ready(progress):
                    return progress
                time.sleep(0.1)
        raise AssertionError(
            f"Waited {seconds} s for {what}; progress is {progress}; log: {self.log.read_text()[-3000:]}"
        )


FAST = {"epochs": "1", "steps_per_epoch": "2", "batch_size": "2", "representation_epochs": "1"}
"""Settings of a training that only has to happen."""


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """Eight phantom patients: images/ and labels/."""
    from bench.phantom import SMALL, write_phantoms

    write_phantoms(tmp_path / "demo", patients=8, seed=1, shape=SMALL)
    return tmp_path / "demo"


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    """Start servers that are stopped after the test: serve(demo folder[, archive's address], key=value settings)."""
    started: list[LiveServer] = []

    def start(root: Path, studies: str = "", **conf: str) -> LiveServer:
        state = {"state": str(root / "state")} if studies else {}
        started.append(LiveServer(root, {**FAST, **state, **conf}, studies=studies))
        return started[-1].start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def nextslice(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command: nextslice(*arguments, cwd=folder)."""

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return run_warm(["-m", "cli", *arguments], cwd, tmp_path_factory.mktemp("printed"))

    return run


def run_warm(arguments: Sequence[str], cwd: Path, printed: Path) -> subprocess.CompletedProcess[str]:
    """`python arguments...` in a process with the libraries imported already, to its end."""
    command = [sys.executable, *arguments]
    status = warm().start(command, printed / "out", cwd, os.environ, printed / "errors").wait(600)
    return subprocess.CompletedProcess(command, status, (printed / "out").read_text(), (printed / "errors").read_text())


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A process of its own, with the libraries imported already: python("-c", code, cwd=folder), or "-m" and a module."""

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return run_warm(arguments, cwd, tmp_path_factory.mktemp("printed"))

    return run


@pytest.fixture(scope="session")
def warm_process() -> Warm:
    """Starts processes with the libraries imported already."""
    return warm()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a throw-away PostgreSQL on a socket in a temporary folder."""
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs (initdb, pg_ctl) are not installed")
    folder = Path("/tmp") / f"pg-{tmp_path_factory.getbasetemp().name}-{time.time_ns()}"
    folder.mkdir(mode=0o700)
    # PostgreSQL refuses to run as root, so root runs it as `nobody`.
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if _is_root() else []
    if as_user:
        shutil.chown(folder, 65534, 65534)
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    try:
        subprocess.run(
            [*as_user, programs / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust"],
            check=True,
            capture_output=True,
        )
        start = [
            programs / "pg_ctl",
            "-D",
            str(folder / "data"),
            "-o",
            options,
            "-l",
            str(folder / "log"),
            "-w",
            "start",
        ]
        subprocess.run([*as_user, *start], check=True, capture_output=True)
        yield f"postgresql+psycopg://test@/postgres?host={folder}"
        subprocess.run(
            [*as_user, programs / "pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop"],
            check=True,
            capture_output=True,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgresql_programs() -> Path | None:
    """Where initdb and pg_ctl are: on PATH, or where Debian keeps them."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


def _is_root() -> bool:
    return os.geteuid() == 0


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        opened = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    else:
        opened = Store(request.getfixturevalue("postgresql"))
        with opened.write() as connection:
            metadata.drop_all(connection)
            metadata.create_all(connection)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def chromium() -> ModuleType:
    """`bench.browser`; skips where no browser can be started."""
    pytest.importorskip("selenium", reason="selenium is not installed (pip install -e .[dev])")
    import bench.browser

    if bench.browser.MISSING:
        pytest.skip(bench.browser.MISSING)
    return bench.browser


@pytest.fixture(scope="session")
def live_server() -> type[LiveServer]:
    """The class itself, for a module whose tests share one server; test modules cannot import each other."""
    return LiveServer


@pytest.fixture
def short_graph_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph network of core_gcn is trained a tenth as long, for tests that ask every strategy the same questions."""
    from strategies import core_gcn

    monkeypatch.setattr(core_gcn, "hidden_features", partial(core_gcn.hidden_features, epochs=20))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several threads for such small networks only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; skips where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One real, empty Orthanc for the session; tests upload under patients of their own. Skips where there is none."""
    if reason := missing():
        pytest.skip(reason)
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def own_archive(tmp_path: Path) -> Iterator[Orthanc]:
    """A real, empty Orthanc of the test's own, which it may stop and start."""
    if reason := missing():
        pytest.skip(reason)
    with Orthanc(tmp_path / "orthanc") as running:
        yield running
