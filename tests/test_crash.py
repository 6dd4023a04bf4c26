"""kill -9 in the middle of writing: what was acknowledged is there, and the server starts again."""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from datastore.volume_io import read_volume, write_volume

KILLS = 12
WRITERS = 4


class Writer(threading.Thread):
    """An annotator who saves a random single-slice label again and again, and remembers what was acknowledged."""

    def __init__(self, url: str, image_ids: list[str], images: Path, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.image_ids, self.images, self.number, self.stop = url, image_ids, images, number, stop
        self.acknowledged: list[dict[str, Any]] = []
        self.rng = random.Random(number)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self._save()
            except httpx.TransportError:
                time.sleep(0.02)

    def _save(self) -> None:
        image_id = self.rng.choice(self.image_ids)
        image = read_volume(self.images / f"{image_id}.nii.gz")
        index = self.rng.randrange(image.array.shape[2])
        mask = np.zeros(image.array.shape, np.uint8)
        mask[..., index] = self.rng.choices(range(5), k=mask[..., 0].size)[0]
        mask[self.rng.randrange(8), self.number, index] = 1
        file = self.images.parent / f"writer{self.number}.nii.gz"
        write_volume(file, mask, image.affine)
        params = {"client_id": f"writer {self.number}", "annotated_slices": [index]}
        with open(file, "rb") as data:
            answer = httpx.put(
                f"{self.url}/datastore/label",
                params={"image": image_id},
                data={"params": json.dumps(params)},
                files={"label": ("label.nii.gz", data)},
                timeout=60,
            )
        assert answer.status_code == 200, answer.text
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.acknowledged.append({"image": image_id, "slice": index, "digest": digest, **answer.json()})


@pytest.mark.slow
def test_twelve_kills_under_four_writers(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, retrain="false")
    ids = sorted(file.name.removesuffix(".nii.gz") for file in server.images.glob("patient*.nii.gz"))
    stop = threading.Event()
    writers = [Writer(server.url, ids, server.images, number, stop) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    rng = random.Random(0)
    for _ in range(KILLS):
        saved = sum(len(writer.acknowledged) for writer in writers)
        until = time.monotonic() + 60
        while sum(len(writer.acknowledged) for writer in writers) < saved + 3:
            assert time.monotonic() < until, "the writers save nothing"
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        server.kill()
        server.start()
    stop.set()
    for writer in writers:
        writer.join(60)
    # Once more, with the last labels in the store and not in their files yet.
    server.kill()
    server.start()
    check(server, [entry for writer in writers for entry in writer.acknowledged])


def check(server: Any, acknowledged: list[dict[str, Any]]) -> None:
    """Every acknowledged label is there with its record and its bytes, and the composite shows the newest of each slice."""
    assert len(acknowledged) >= 3 * KILLS
    state = server.images / ".nextslice"
    files = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in (state / "submissions").rglob("*.nii.gz")}
    with server.client() as http:
        for image_id in {entry["image"] for entry in acknowledged}:
            facts = http.get(f"/al/items/{image_id}").json()
            sent = {row["id"]: row for row in facts["submissions"]}
            for entry in (e for e in acknowledged if e["image"] == image_id):
                row = sent[entry["submission"]]
                assert (row["slices"], row["digest"]) == ([entry["slice"]], entry["digest"])
                assert entry["digest"] in files
            http.get("/datastore/label", params={"label": image_id, "tag": "final"}).raise_for_status()
            final = read_volume(server.images / "labels" / "final" / f"{image_id}.nii.gz").array
            for state_of in facts["slices"]:
                index = state_of["slice"]
                if state_of["state"] == "labeled":
                    newest = read_volume(files[sent[state_of["submission"]]["digest"]]).array
                    assert np.array_equal(final[..., index], newest[..., index])
                else:
                    assert not final[..., index].any()


def test_child_processes_end_with_a_killed_server_and_the_job_is_told_lost(
    demo: Path, serve: Callable[..., Any]
) -> None:
    server = serve(demo, epochs="200", steps_per_epoch="50", retrain="false")
    with server.client() as http:
        for image_id in ("patient001", "patient002", "patient003", "patient004"):
            with open(server.truth / f"{image_id}.nii.gz", "rb") as label:
                http.put(
                    "/datastore/label", params={"image": image_id}, files={"label": ("l.nii.gz", label)}
                ).raise_for_status()
        http.post("/train/unet2d").raise_for_status()
    server.wait_for(
        "training", lambda p: any(job["status"] == "RUNNING" and job["progress"] for job in p["running"]["train"])
    )
    children = descendants(server.process.pid)
    assert children
    # Forked with the server's imports, which are not done again.
    assert not any(b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)
    server.kill()
    until = time.monotonic() + 15
    while any(alive(pid) for pid in children):
        assert time.monotonic() < until, "a child process outlived the server"
        time.sleep(0.1)
    server.start()
    with server.client() as http:
        assert http.get("/train/").json()["status"] == "ERROR"
        assert "server ended" in http.get("/train/").json()["details"][0]
        job = http.post("/train/unet2d", json={"epochs": 1, "steps_per_epoch": 1}, params={"run_sync": True})
        assert job.json()["status"] == "DONE"


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
