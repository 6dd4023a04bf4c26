"""How fast samples are served and labels are saved, beside stock MONAI Label under the same conditions."""

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from bench.live import CLIENTS, Effort, Lane, Server, Times, race, send
from bench.phantom import make_phantom
from bench.tables import median_of, ratio_of, table, times
from datastore.volume_io import write_volume
from loop.durable import sync_file

_ROOT = Path(__file__).parent.parent
_SHAPE = (35, 51, 35)
_BUDGET = 400
"""Items in a round: enough that every measured request gets a ticket of its own (at most four items go into one)."""

_PLAN_SECONDS = 600
_POLL_SECONDS = 0.1

_DURABILITY = """\
Both save the whole volume as the final label of an image that had none. A label that NextSlice has acknowledged survives a
crash of the process and of the machine: the file as it was sent is synced to disk and its slices are committed (SQLite,
WAL, synchronous=FULL) before the answer. Stock copies the file and rewrites its JSON file, without syncing either. The composite
mask and the file of what was sent follow when nobody has saved for a moment, or after 30 s: about half as much work again as the
save, and not in these figures where a block of requests is shorter.
Writing and syncing (fsync) one small file on this disk, in the same minutes: {fsync} ms; stock waits for none."""
_FSYNCS = 5


@dataclass(frozen=True)
class Case:
    """A volume and a valid label of it."""

    image: Path
    label: Path

    @classmethod
    def of(cls, data: Path, folder: Path) -> "Case":
        """A real one where it is there, else a phantom of that size."""
        name = "hippocampus_001.nii.gz"
        image, label = data / "hippocampus" / "images" / name, data / "hippocampus" / "labels" / name
        if image.is_file() and label.is_file():
            # Copied, because only files of one file system can be linked.
            return cls(
                Path(shutil.copy(image, folder / "image.nii.gz")), Path(shutil.copy(label, folder / "label.nii.gz"))
            )
        phantom = make_phantom(np.random.default_rng(0), setting=0, shape=_SHAPE)
        case = cls(folder / "image.nii.gz", folder / "label.nii.gz")
        write_volume(case.image, phantom.image, phantom.affine)
        write_volume(case.label, np.minimum(phantom.label, 3), phantom.affine)
        return case


def link(image: Path, folder: Path, count: int) -> list[str]:
    """Fill a new folder with hard links to the image; their ids."""
    folder.mkdir(parents=True)
    ids = [f"image{number:05d}" for number in range(count)]
    for image_id in ids:
        os.link(image, folder / f"{image_id}.nii.gz")
    return ids


def ours(studies: Path, home: Path) -> Server:
    """Our server, with nothing going on beside serving: it does not train."""
    return our_server(studies, home, {"budget": str(_BUDGET), "retrain": "false"})


def our_server(studies: Path | str, home: Path, conf: Mapping[str, str]) -> Server:
    """`nextslice serve` with these settings."""
    # A copy, because MONAI Label writes beside an app's files.
    (home / "app").mkdir(parents=True)
    for file in (_ROOT / "apps" / "radiology").glob("*.py"):
        shutil.copy(file, home / "app")
    settings = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    return Server(["cli", "serve", "--studies", str(studies), "--app", str(home / "app"), *settings], home)


def stock(studies: Path | str, home: Path, env: Mapping[str, str] = MappingProxyType({})) -> Server:
    """MONAI Label's server at its best: without the scoring that it queues at every sample by default.

    Args:
        studies: a folder, or the address of an archive. env: more of its environment.
    """
    app = shutil.copytree(_ROOT / "bench" / "stock_app", home / "app")
    command = ["monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    return Server(command, home, {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", **env})


def first_round(server: Server, images: int) -> float:
    """Wait until our server knows all images and has its default strategy's round; the seconds since it was started."""
    until = time.monotonic() + _PLAN_SECONDS
    while time.monotonic() < until:
        progress = server.get("/al/progress")
        if progress["counts"]["images"] == images and progress["rounds"]:
            return time.monotonic() - server.started
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"No round of {images} images after {_PLAN_SECONDS} s: {progress}")


def plan(server: Server, strategy: str) -> httpx.Request:
    """The request that opens a round of a strategy, and answers when it is open."""
    return server.request("POST", f"/scoring/{strategy}?run_sync=true&enqueue=true", json={})


def asking(server: Server, strategy: str) -> Lane:
    """Next sample of ours; every answer must be a ticket of this strategy that nobody had before."""
    seen: set[str] = set()

    def check(answer: Any) -> None:
        ask = answer.get("ask", {})
        if ask.get("strategy") != strategy or ask["ticket"] in seen:
            raise RuntimeError(f"{strategy} gave no fresh ticket: {answer}")
        seen.add(ask["ticket"])

    return Lane(server, itertools.repeat(server.request("POST", f"/activelearning/{strategy}", json={})), check)


def _asking_stock(server: Server) -> Lane:
    def check(answer: Any) -> None:
        if "id" not in answer:
            raise RuntimeError(f"stock gave no sample: {answer}")

    return Lane(server, itertools.repeat(server.request("POST", "/activelearning/random", json={})), check)


def _saving(server: Server, ids: Sequence[str], label: Path) -> Lane:
    """Save the label to one image after another."""
    saved: set[str] = set()

    def check(answer: Any) -> None:
        if answer["image"] in saved or not answer.get("slices", ["stock names none"]):
            raise RuntimeError(f"not saved: {answer}")
        saved.add(answer["image"])

    def requests() -> Iterator[httpx.Request]:
        for image_id in ids:
            yield server.request(
                "PUT",
                f"/datastore/label?image={image_id}",
                data={"params": '{"client_id": "bench"}'},
                files={"label": ("label.nii.gz", label.read_bytes())},
            )

    return Lane(server, requests(), check)


STOCK, OURS, OUR_DEFAULT = "stock", "ours", "ours, default strategy"
Lanes = dict[tuple[str, int], Times]
"""By server and number of images."""


@dataclass(frozen=True)
class Served:
    """What was measured.

    Attributes:
        fsync: milliseconds to write and sync a small file.
    """

    sizes: Sequence[int]
    asked: Lanes
    saved: Lanes
    fsync: Sequence[float]


def serve(case: Case, sizes: Sequence[int], effort: Effort, folder: Path) -> Served:
    """Stock and our server at every size, each with its own links of the same volume."""
    ask: dict[tuple[str, int], Lane] = {}
    save: dict[tuple[str, int], Lane] = {}
    with ExitStack() as running:
        for images in tqdm(sizes, desc="start servers", unit="size", leave=False, disable=None):
            homes = {name: folder / f"{name}-{images}" for name in (STOCK, OURS)}
            ids = {name: link(case.image, home / "studies", images) for name, home in homes.items()}
            theirs = running.enter_context(stock(homes[STOCK] / "studies", homes[STOCK]))
            mine = running.enter_context(ours(homes[OURS] / "studies", homes[OURS]))
            first_round(mine, images)
            default = str(mine.get("/al/progress")["strategy"])
            open_round(mine, "random")
            ask[STOCK, images] = _asking_stock(theirs)
            ask[OURS, images], ask[OUR_DEFAULT, images] = asking(mine, "random"), asking(mine, default)
            save[STOCK, images] = _saving(theirs, ids[STOCK], case.label)
            save[OURS, images] = _saving(mine, ids[OURS], case.label)
        asked = race(ask, effort, "next sample")
        syncs = [_fsync(folder / "probe") for _ in range(_FSYNCS)]
        saved = race(save, effort, "save label")
        return Served(sizes, asked, saved, [*syncs, *(_fsync(folder / "probe") for _ in range(_FSYNCS))])


def open_round(server: Server, strategy: str) -> None:
    """Ask once, which has the round planned, and wait for it; until then the default's round is served."""
    send(server.request("POST", f"/activelearning/{strategy}", json={}))
    until = time.monotonic() + _PLAN_SECONDS
    while strategy not in (row["strategy"] for row in server.get("/al/progress")["rounds"]):
        if time.monotonic() > until:
            raise RuntimeError(f"No round of {strategy} after {_PLAN_SECONDS} s.")
        time.sleep(_POLL_SECONDS)


def _fsync(file: Path) -> float:
    began = time.perf_counter()
    file.write_bytes(b"0" * 1000)
    sync_file(file)
    return 1000 * (time.perf_counter() - began)


def report(found: Served) -> str:
    """Tables of next sample and save label: milliseconds, answers a second, and how many times better than stock."""
    return "\n".join(
        [
            *_compared("Next sample: POST /activelearning/random (or our default strategy)", found.sizes, found.asked),
            *_compared("Save label: PUT /datastore/label", found.sizes, found.saved),
            "",
            _DURABILITY.format(fsync=median_of(found.fsync)),
        ]
    )


def _compared(title: str, sizes: Sequence[int], lanes: Lanes) -> list[str]:
    """One row a server and size, and how the one client's time grows with the pool."""
    header = ["images", "server", "ms, 1 client", "stock/ours", f"a second, {CLIENTS} clients", "ours/stock"]
    names = list(dict.fromkeys(name for name, _ in lanes))
    rows = []
    for images in sizes:
        stock_times = lanes[STOCK, images]
        for name in names:
            mine = lanes[name, images]
            faster = times(ratio_of(stock_times.ms, mine.ms)) if name != STOCK else ""
            more = times(ratio_of(mine.per_second, stock_times.per_second)) if name != STOCK else ""
            rows.append([str(images), name, median_of(mine.ms), faster, median_of(mine.per_second), more])
    first, last = sizes[0], sizes[-1]
    grown = ", ".join(f"{name} {times(ratio_of(lanes[name, last].ms, lanes[name, first].ms))}" for name in names)
    return [table(title, header, rows), "", f"Growth of ms from {first} to {last} images (1x is flat): {grown}."]
