"""A DICOMweb archive of many series: from the start to the first sample, and saving a label, beside stock MONAI Label.

Both servers look at the same local Orthanc. Stock is given what it needs to work offline at all: a search filter for MR, and
something called `itkimage2segimage` on PATH, which it looks for when it starts and calls when a label is saved. Ours hands out a
DICOM SEG that was written before, so that writing costs stock nothing.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from bench.dicom_phantom import Study, uid, write_series
from bench.live import Server
from bench.orthanc import Orthanc, missing
from bench.serving import OURS, STOCK, our_server, stock
from bench.tables import median_of, ratio_of, table, times
from datastore.volume_io import read_volume, write_volume
from dicom.seg_writer import Author, write_seg
from dicom.series import read_series

_SHAPE = (32, 32, 4)
_AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
_LABELS = {"structure_1": 1, "structure_2": 2, "structure_3": 3}
_OPEN_SECONDS = 600
_POLL_SECONDS = 0.05
_TOOL = """\
#!/bin/sh
# --inputDICOMDirectory and --outputDICOM of dcmqi's program of this name: the SEG of that series, written before.
while [ $# -gt 0 ]; do
    case "$1" in
        --inputDICOMDirectory) series=$(basename "$2") ;;
        --outputDICOM) out=$2 ;;
    esac
    shift
done
exec cp "{folder}/$series.dcm" "$out"
"""
_NOTES = """\
Started: the process answers /info/. First sample: from then until the first next sample is answered with an image, its volume
fetched from the archive and downloaded. Stock searches the archive when it is asked, and fetches the series before it answers;
ours has searched when it starts, and fetches when the volume is asked for: only the sums compare.
Stock's save stores a SEG in the archive and syncs nothing; its program for that is replaced by one that copies a SEG written
before. Ours keeps the label as it was sent, durably; "and SEG stored" also writes the composite mask as a SEG and stores it."""


@dataclass(frozen=True)
class Size:
    """How much is measured: series in the archive, starts of each server, samples and saves after."""

    series: int
    starts: int
    calls: int


QUICK, FULL = Size(100, 1, 5), Size(1000, 3, 15)
_BUDGET = 400
"""Items in a round: enough that every sample is a ticket of its own."""
SAVED_AND_STORED = "ours, and SEG stored"


@dataclass
class Opened:
    """Seconds from the process's start to its first answer, and from there to the first sample with its volume."""

    started: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def total(self) -> list[float]:
        return [a + b for a, b in zip(self.started, self.first, strict=True)]


@dataclass
class Found:
    """What was measured, by server: starts in seconds, later samples with their volumes and saves in milliseconds."""

    opened: dict[str, Opened] = field(default_factory=lambda: {STOCK: Opened(), OURS: Opened()})
    samples: dict[str, list[float]] = field(default_factory=lambda: {STOCK: [], OURS: []})
    saves: dict[str, list[float]] = field(default_factory=lambda: {STOCK: [], OURS: [], SAVED_AND_STORED: []})


def report(folder: Path, size: Size) -> str:
    """Measure in a folder of our own, and tell it; without Orthanc, why not."""
    if reason := missing():
        return f"\n## Archive\n\nNot measured: {reason}."
    with Orthanc(folder / "orthanc") as archive:
        _fill(archive, folder, size)
        return _told(measure(archive, folder, size), size)


def _series_uid(number: int) -> str:
    return uid(f"P{number}", "study", "series")


def _fill(archive: Orthanc, folder: Path, size: Size) -> None:
    """Series in the archive; of those that labels are saved to, a SEG for stock's stand-in."""
    rng = np.random.default_rng(0)
    segs, mask = folder / "segs", _mask()
    segs.mkdir()
    for number in tqdm(range(size.series), desc="fill Orthanc", unit="series", leave=False, disable=None):
        array = rng.integers(0, 1000, _SHAPE).astype(np.int16)
        files = write_series(folder / "dicom" / str(number), array, _AFFINE, Study(f"P{number}"))
        archive.upload(folder / "dicom" / str(number))
        if number < 2 * size.calls:
            author = Author("stock", datetime(2024, 1, 15, tzinfo=UTC))
            written = write_seg(mask, read_series(files).geometry, _LABELS, author, kind="binary")
            (segs / f"{_series_uid(number)}.dcm").write_bytes(written.content)
        for file in files:
            file.unlink()
    tool = folder / "bin" / "itkimage2segimage"
    tool.parent.mkdir()
    tool.write_text(_TOOL.format(folder=segs))
    tool.chmod(0o755)


def _mask() -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros(_SHAPE, np.uint8)
    for value in _LABELS.values():
        mask[4 * value : 4 * value + 8, 8:24, 1:3] = value
    return mask


def measure(archive: Orthanc, folder: Path, size: Size) -> Found:
    """Each server started so often, in turns; then both at once, asked and told in turns."""
    found = Found()
    for turn in tqdm(range(size.starts), desc="start servers", unit="turn", leave=False, disable=None):
        for name in (STOCK, OURS):
            with _server(name, archive.url, folder / f"{name}-{turn}", folder / "bin") as server:
                found.opened[name].started.append(time.monotonic() - server.started)
                found.opened[name].first.append(_sample(server) / 1000)
    with (
        _server(STOCK, archive.url, folder / "stock-asked", folder / "bin") as theirs,
        _server(OURS, archive.url, folder / "ours-asked", folder / "bin") as mine,
    ):
        servers: Mapping[str, Server] = {STOCK: theirs, OURS: mine}
        for server in servers.values():
            _sample(server)
        for _ in tqdm(range(size.calls), desc="next sample", unit="call", leave=False, disable=None):
            for name, server in servers.items():
                found.samples[name].append(_sample(server))
        for number in tqdm(range(2 * size.calls), desc="save label", unit="label", leave=False, disable=None):
            # Each has fetched the series before: the annotator has seen it.
            label = _volume_and_label(servers, number, folder)
            if number % 2:
                found.saves[STOCK].append(_save(theirs, number, label))
                found.saves[OURS].append(_save(mine, number, label))
            else:
                began = time.perf_counter()
                _save(mine, number, label)
                _call(mine, "POST", f"/al/items/{_series_uid(number)}/store", json={"kind": "binary"})
                found.saves[SAVED_AND_STORED].append(1000 * (time.perf_counter() - began))
    return found


def _server(name: str, url: str, home: Path, tools: Path) -> Server:
    if name == OURS:
        labels = ",".join(_LABELS)
        conf = {
            "state": str(home / "state"), "labels": labels, "retrain": "false", "archive_modalities": "MR",
            "budget": str(_BUDGET),
        }  # fmt: skip
        return our_server(url, home, conf)
    home.mkdir()
    env = {
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": "MR"}),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    return stock(url, home, env)


def _call(server: Server, method: str, path: str, **content: Any) -> httpx.Response:
    answer = httpx.request(method, f"{server.url}{path}", timeout=_OPEN_SECONDS, **content)
    if answer.status_code != 200:
        raise RuntimeError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer


def _sample(server: Server) -> float:
    """Milliseconds until a next sample is there, with its volume; ours may have none in its first moments."""
    began = time.perf_counter()
    while not (sample := _call(server, "POST", "/activelearning/random", json={}).json()):
        if time.perf_counter() - began > _OPEN_SECONDS:
            raise RuntimeError(f"No sample from {server.url} after {_OPEN_SECONDS} s.")
        time.sleep(_POLL_SECONDS)
    _call(server, "GET", "/datastore/image", params={"image": sample["id"]})
    return 1000 * (time.perf_counter() - began)


def _volume_and_label(servers: Mapping[str, Server], number: int, folder: Path) -> Path:
    """A label on the grid on which the servers give out the image."""
    image = folder / "seen.nii.gz"
    for server in servers.values():
        image.write_bytes(_call(server, "GET", "/datastore/image", params={"image": _series_uid(number)}).content)
    label = folder / "label.nii.gz"
    write_volume(label, _mask(), read_volume(image).affine)
    return label


def _save(server: Server, number: int, label: Path) -> float:
    info = [{"name": name, "idx": value} for name, value in _LABELS.items()]
    params = json.dumps({"client_id": "bench", "label_info": info})
    files = {"label": ("label.nii.gz", label.read_bytes())}
    began = time.perf_counter()
    _call(server, "PUT", f"/datastore/label?image={_series_uid(number)}", data={"params": params}, files=files)
    return 1000 * (time.perf_counter() - began)


def _told(found: Found, size: Size) -> str:
    header = ["", "stock", "ours", "stock/ours"]
    of = found.opened

    def row(what: str, theirs: Sequence[float], mine: Sequence[float]) -> list[str]:
        return [what, median_of(theirs), median_of(mine), times(ratio_of(theirs, mine))]

    rows = [
        row("process started, s", of[STOCK].started, of[OURS].started),
        row("then first sample with its volume, s", of[STOCK].first, of[OURS].first),
        row("both, s", of[STOCK].total, of[OURS].total),
        row("later sample with its volume, ms", found.samples[STOCK], found.samples[OURS]),
        row("save label, ms", found.saves[STOCK], found.saves[OURS]),
        row("save label, ours with its SEG stored, ms", found.saves[STOCK], found.saves[SAVED_AND_STORED]),
    ]
    title = f"Archive: an Orthanc with {size.series} series of {_SHAPE[2]} slices of {_SHAPE[0]} x {_SHAPE[1]}"
    return f"{table(title, header, rows)}\n\n{_NOTES}"
