"""How fast samples are served and labels are saved, beside stock MONAI Label under the same conditions."""

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.live import CLIENTS, Effort, Lane, Server, Times, race, send
from bench.phantom import make_phantom
from bench.tables import median_of, ratio_of, table, times
from datastore.volume_io import write_volume

_ROOT = Path(__file__).parent.parent
_SHAPE = (35, 51, 35)
_BUDGET = 400
"""Items in a round: enough that every measured request gets a ticket of its own (at most four items go into one)."""

_PLAN_SECONDS = 600

DURABILITY = (
    "A label saved by NextSlice survives a crash of the process and of the machine: the file as sent and the composite "
    "mask are synced\nto disk (fsync) and its slices are committed (SQLite, WAL, synchronous=FULL) before the answer. Stock "
    "copies the file and rewrites its JSON,\nwithout fsync. Both save the whole volume as a final label of an image that had none."
)


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
    app = shutil.copytree(_ROOT / "apps" / "radiology", home / "app", ignore=shutil.ignore_patterns("logs", "bin"))
    conf = ["--conf", f"budget={_BUDGET}", "--conf", "retrain=false"]
    return Server(["cli", "serve", "--studies", str(studies), "--app", str(app), *conf], home)


def stock(studies: Path, home: Path) -> Server:
    """MONAI Label's server at its best: without the scoring that it queues at every sample by default."""
    app = shutil.copytree(_ROOT / "bench" / "stock_app", home / "app")
    command = ["monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    return Server(command, home, {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false"})


def default_round(server: Server, images: int) -> float:
    """Wait until our server knows all images and has its default strategy's round; the seconds that took."""
    began = time.monotonic()
    while time.monotonic() - began < _PLAN_SECONDS:
        progress = server.get("/al/progress")
        if progress["counts"]["images"] == images and progress["rounds"]:
            return time.monotonic() - began
        time.sleep(0.2)
    raise RuntimeError(f"No round of {images} images after {_PLAN_SECONDS} s: {progress}")


def plan(server: Server, strategy: str) -> httpx.Request:
    """The request that opens a round of a strategy, and answers when it is open."""
    return server.request("POST", f"/scoring/{strategy}?run_sync=true&enqueue=true", json={})


def asking(server: Server, strategy: str) -> Lane:
    """Next sample of ours; every answer must be a ticket that nobody had before."""
    seen: set[str] = set()

    def check(answer: Any) -> None:
        ticket = answer.get("ask", {}).get("ticket")
        if ticket is None or ticket in seen:
            raise RuntimeError(f"{strategy} gave no fresh ticket: {answer}")
        seen.add(ticket)

    return Lane(itertools.repeat(server.request("POST", f"/activelearning/{strategy}", json={})), check)


def _asking_stock(server: Server) -> Lane:
    def check(answer: Any) -> None:
        if "id" not in answer:
            raise RuntimeError(f"stock gave no sample: {answer}")

    return Lane(itertools.repeat(server.request("POST", "/activelearning/random", json={})), check)


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

    return Lane(requests(), check)


@dataclass(frozen=True)
class Served:
    """Times at one number of images, by lane."""

    images: int
    asked: dict[str, Times]
    saved: dict[str, Times]


STOCK, RANDOM, DEFAULT = "stock random", "ours random", "ours default"
STOCK_SAVE, OUR_SAVE = "stock save", "ours save"


def serve(case: Case, images: int, effort: Effort, folder: Path) -> Served:
    """Both servers side by side on their own links of the same volume."""
    ids = link(case.image, folder / "stock" / "studies", images)
    link(case.image, folder / "ours" / "studies", images)
    with (
        stock(folder / "stock" / "studies", folder / "stock") as theirs,
        ours(folder / "ours" / "studies", folder / "ours") as mine,
    ):
        default_round(mine, images)
        mine_default = mine.get("/al/progress")["strategy"]
        send(plan(mine, "random"))
        asked = {STOCK: _asking_stock(theirs), RANDOM: asking(mine, "random"), DEFAULT: asking(mine, mine_default)}
        saved = {STOCK_SAVE: _saving(theirs, ids, case.label), OUR_SAVE: _saving(mine, ids, case.label)}
        return Served(
            images,
            race(asked, effort, f"next sample, {images} images"),
            race(saved, effort, f"save label, {images} images"),
        )


def report(found: Sequence[Served]) -> str:
    """Tables of next sample and save label: milliseconds, served a second, and how many times better than stock."""
    header = ["images", "server", "ms, 1 client", "stock/ours", f"a second, {CLIENTS} clients", "ours/stock"]
    asked = [row for served in found for row in _rows(served.images, served.asked, STOCK)]
    saved = [row for served in found for row in _rows(served.images, served.saved, STOCK_SAVE)]
    return "\n".join(
        [
            table("Next sample: POST /activelearning/<strategy>", header, asked),
            *_growth([served.asked for served in found], found),
            table("Save label: PUT /datastore/label", header, saved),
            *_growth([served.saved for served in found], found),
            "",
            DURABILITY,
        ]
    )


def _rows(images: int, lanes: dict[str, Times], base: str) -> list[list[str]]:
    theirs = lanes[base]
    rows = []
    for name, mine in lanes.items():
        ratios = [times(ratio_of(theirs.ms, mine.ms)), times(ratio_of(mine.per_second, theirs.per_second))]
        cells = [median_of(mine.ms), ratios[0], median_of(mine.per_second), ratios[1]]
        rows.append([str(images), name, *(cell if name != base or i % 2 == 0 else "" for i, cell in enumerate(cells))])
    return rows


def _growth(lanes: Sequence[dict[str, Times]], found: Sequence[Served]) -> list[str]:
    """How the one client's time grows with the pool; 1 is flat."""
    if len(found) < 2:
        return []
    grown = [f"{name} {times(ratio_of(lanes[-1][name].ms, lanes[0][name].ms))}" for name in lanes[0]]
    return ["", f"Growth of ms from {found[0].images} to {found[-1].images} images (1x is flat): {', '.join(grown)}."]
