"""Our server with a million slices in the pool, beside the same server with a hundredth of the images."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.live import CLIENTS, Effort, Server, Times, race, send
from bench.serving import asking, first_round, link, open_round, ours, plan
from bench.tables import median_of, ratio_of, table, times
from datastore.volume_io import write_volume
from loop.config import AppConfig
from loop.rounds import Loop
from loop.store import Store

_SHAPE, _SPACING = (16, 16, 100), (1.0, 1.0, 3.0)
_FEW = 100
_STRATEGIES = ("random", "spread")
_REPEATS = 3
_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Planned:
    """How long a round took to plan.

    Attributes:
        seconds: of each POST /scoring: process start, pool, selection and the round's records.
        inside: of the same, what the round says of itself: pool and selection.
        peak_mib: resident memory of the planning process, pages that it shares with the process it was forked from included.
    """

    strategy: str
    seconds: Sequence[float]
    inside: Sequence[float]
    peak_mib: float


@dataclass(frozen=True)
class Million:
    """What was measured.

    Attributes:
        slices: in the large pool.
        opened: seconds from the start of the large server's process until its first round was open.
        pool: seconds to build the pool from the records, each time anew.
        rss_mib: the large server's resident memory after all calls.
    """

    images: int
    slices: int
    asked: dict[tuple[str, int], Times]
    opened: float
    pool: Sequence[float]
    planned: Sequence[Planned]
    rss_mib: float


def measure(images: int, effort: Effort, folder: Path) -> Million:
    """Both servers side by side on links of one small volume."""
    volume = folder / "image.nii.gz"
    write_volume(volume, _noise(), np.diag([*_SPACING, 1.0]))
    link(volume, folder / "few" / "studies", _FEW)
    link(volume, folder / "many" / "studies", images)
    with (
        ours(folder / "few" / "studies", folder / "few") as few,
        ours(folder / "many" / "studies", folder / "many") as many,
    ):
        opened = first_round(many, images)
        first_round(few, _FEW)
        # Does not count: it may start the process that the planning ones are forked from.
        send(plan(many, _STRATEGIES[0]))
        planned = [_plan(many, strategy) for strategy in _STRATEGIES]
        for strategy in _STRATEGIES:
            open_round(few, strategy)
        pools = ((_FEW, few), (images, many))
        lanes = {(name, count): asking(server, name) for name in _STRATEGIES for count, server in pools}
        asked = race(lanes, effort, f"next sample, {images} images of {_SHAPE[2]} slices")
        return Million(
            images,
            int(many.get("/al/progress")["counts"]["slices"]),
            asked,
            opened,
            _pool_seconds(folder / "many" / "studies"),
            planned,
            _mib(many.processes()[0]),
        )


def _noise() -> Any:
    return np.random.default_rng(0).integers(0, 1000, _SHAPE).astype(np.int16)


def _plan(server: Server, strategy: str) -> Planned:
    seconds, inside, peak = [], [], 0.0
    with ThreadPoolExecutor(1) as background:
        for _ in range(_REPEATS):
            before = {process.pid for process in server.processes()}
            job = background.submit(send, plan(server, strategy))
            while not job.done():
                peak = max([peak, *(_mib(process) for process in server.processes() if process.pid not in before)])
                time.sleep(_SAMPLE_SECONDS)
            took, answer = job.result()
            seconds.append(took / 1000)
            number = answer["result"]["rounds"][strategy]
            inside.append(float(server.get(f"/al/rounds/{number}")["seconds"]))
    return Planned(strategy, seconds, inside, peak)


def _mib(process: psutil.Process) -> float:
    """Resident memory; 0 of a process that has ended."""
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def _pool_seconds(studies: Path) -> list[float]:
    config = AppConfig()
    store = Store(f"sqlite:///{config.state_dir(str(studies)) / 'store.sqlite'}")
    try:
        catalogue = Loop(store, config).catalogue
        found = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            catalogue.build_pool()
            found.append(time.perf_counter() - began)
        return found
    finally:
        store.close()


def report(found: Million) -> str:
    """Tables of next sample and of planning."""
    asked = []
    for name in _STRATEGIES:
        few, many = found.asked[name, _FEW], found.asked[name, found.images]
        for slices, lane in ((_FEW * _SHAPE[2], few), (found.slices, many)):
            growth = times(ratio_of(lane.ms, few.ms)) if lane is many else ""
            asked.append([name, f"{slices:,}", median_of(lane.ms), growth, median_of(lane.per_second)])
    planned = [
        [row.strategy, median_of(row.seconds), median_of(row.inside), f"{row.peak_mib:.0f}"] for row in found.planned
    ]
    return "\n".join(
        [
            table(
                f"Next sample with {found.slices:,} slices ({found.images} images) in the pool",
                ["strategy", "slices", "ms, 1 client", "growth", f"a second, {CLIENTS} clients"],
                asked,
            ),
            table(
                f"Plan a round from {found.slices:,} slices: POST /scoring/<strategy>",
                ["strategy", "s in all", "s for pool and selection", "MiB of the planning process"],
                planned,
            ),
            "",
            f"Building the pool from the records: {median_of(found.pool)} s.\nFrom the start of the server to its first round "
            f"({found.images} headers, records, plan): {found.opened:.1f} s. Its memory (RSS): {found.rss_mib:.0f} MiB.",
        ]
    )
