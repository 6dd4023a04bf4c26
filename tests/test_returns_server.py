"""The whole loop by the archive alone: what people draw is stored there, through us or not, and a real server takes it back."""

import io
import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest

from bench.dicom_phantom import Study, uid, write_series
from bench.phantom import SMALL, write_phantoms
from bench.seg_phantom import highdicom_seg, ohif_seg
from datastore.volume_io import read_volume
from dicom.archive import Archive

LABELS = ("organ", "vessel", "wall", "lesion")
_SECONDS = 90


def wait(what: str, ready: Callable[[], Any]) -> Any:
    """What `ready` gives once it gives something."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError(f"Waited {_SECONDS} s for {what}")


def related(file: bytes) -> tuple[bytes, dict[str, str]]:
    """A STOW body and its header."""
    boundary = uuid.uuid4().hex
    body = (
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + f"\r\n--{boundary}--\r\n".encode()
    )
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return body, {"Content-Type": kind, "Accept": "application/dicom+json"}


def stow(archive: Any, content: bytes) -> None:
    """As a workstation, straight into the archive."""
    client = Archive(archive.url)
    client.store(str(pydicom.dcmread(io.BytesIO(content)).StudyInstanceUID), content)
    client.close()


def looks(http: httpx.Client) -> Any:
    """Whether the server has looked into the archive since it started."""
    return http.get("/al/returns").json()["how"]


@pytest.mark.slow
def test_a_round_is_annotated_by_the_archive_alone_and_the_next_one_follows(
    own_archive: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    write_phantoms(tmp_path / "demo", patients=4, seed=1, shape=SMALL)
    files, truth = {}, {}
    for file in sorted((tmp_path / "demo" / "images").glob("*.nii.gz")):
        patient, volume = file.name.removesuffix(".nii.gz"), read_volume(file)
        image = uid(patient, "study", "series")
        files[image] = write_series(tmp_path / "dicom" / patient, volume.array, volume.affine, Study(patient))
        truth[image] = read_volume(tmp_path / "demo" / "labels" / file.name).array.astype(np.uint8)
        own_archive.upload(tmp_path / "dicom" / patient)
    server = serve(
        tmp_path, own_archive.url, labels=",".join(LABELS), budget="4", slices_per_ticket="1", strategy="max_entropy",
        rescan_seconds="1", returns_seconds="0.3", validation_share="0",
    )  # fmt: skip
    answered: dict[tuple[str, int], str] = {}
    with server.client() as http:
        assert wait("the first look", lambda: looks(http)) == "changes"
        for number, how in enumerate(("ticket", "proxy", "server dies", "archive dies")):
            ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
            (asked,), image = ticket["slices"], ticket["image"]
            mask = np.zeros_like(truth[image])
            mask[:, :, asked] = truth[image][:, :, asked]
            if how == "proxy":
                content = highdicom_seg(files[image], mask, LABELS, creator="ann^")
            else:
                content = ohif_seg(files[image], mask, LABELS, f"answer {number}", slices=[asked])
            body, headers = related(content)
            if how == "ticket":
                sent = http.post(f"/dicom-web/tickets/{ticket['ticket']}/studies", content=body, headers=headers)
                assert sent.status_code == 200, sent.text
            elif how == "proxy":
                assert http.post("/dicom-web/studies", content=body, headers=headers).status_code == 200
            elif how == "server dies":
                server.kill()
                stow(own_archive, content)
                server.start()
            else:
                own_archive.stop()
                wait("the trouble", lambda: http.get("/al/returns").json()["trouble"])
                own_archive.start()
                stow(own_archive, content)
            address = f"/al/tickets/{ticket['ticket']}"
            wait(f"the answer ({how})", lambda address=address: http.get(address).json()["state"] == "submitted")
            sop = str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)
            row = wait("its record", lambda sop=sop: next((r for r in listed(http) if r["instance"] == sop), None))
            assert (row["state"], row["image"]) == ("recorded", image)
            answered[image, asked] = sop
        assert len(answered) == 4
        server.wait_for("a model", lambda p: p["model"])
        server.wait_for("a round with it", lambda p: any(row["selected_by"] == "max_entropy" for row in p["rounds"]))
        by_image: dict[str, list[int]] = {}
        for image, asked in answered:
            by_image.setdefault(image, []).append(asked)
        for image, slices in by_image.items():
            sent = http.get(f"/al/items/{image}").json()["submissions"]
            annotated = sorted(k for row in sent if row["tag"] == "final" for k in row["slices"])
            assert set(slices) <= set(annotated)
            (tmp_path / "mask.nii.gz").write_bytes(
                http.get("/datastore/label", params={"label": image, "tag": "final"}).content
            )
            found = read_volume(tmp_path / "mask.nii.gz").array
            assert np.array_equal(found[:, :, slices], truth[image][:, :, slices])
        assert len(listed(http)) == 4
        # What the next annotator begins with: the mask so far of an annotated image, the model's of another.
        for image in files:
            check_start(http, own_archive, image)
        assert len(listed(http)) == 4, "what we stored ourselves is nobody's answer"
        check_pages(http)


def listed(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/al/returns").json()["returns"]
    return found


def check_pages(http: httpx.Client) -> None:
    """All of them come, in the same order, however few at once; a state is looked for before it is counted."""
    for state in ({}, {"state": "recorded"}, {"state": "ours"}):
        everything = http.get("/al/returns", params=state).json()
        found, following = [], {}
        while True:
            page = http.get("/al/returns", params={"limit": 3, **state, **following}).json()
            found += page["returns"]
            if page["next"] is None:
                break
            assert len(page["returns"]) == 3
            following = {"before": page["next"]}
        assert (found, everything["next"]) == (everything["returns"], None)
    assert http.get("/al/returns", params={"before": "1.2.3"}).status_code == 404


def check_start(http: httpx.Client, archive: Any, image: str) -> None:
    """A ticket of this image, if there is one now, opens with a mask that is in the archive."""
    ticket = http.post("/al/ask", json={"annotator": f"of {image[-8:]}"}).json()["tickets"]
    if not ticket:
        return
    first = http.post(f"/al/tickets/{ticket[0]['ticket']}/start").json()
    assert first["series"]
    assert http.post(f"/al/tickets/{ticket[0]['ticket']}/start").json() == first
    there = httpx.get(f"{archive.url}/series", params={"SeriesInstanceUID": first["series"]}).json()
    assert len(there) == 1


@pytest.mark.slow
def test_a_kill_while_segs_come_in_records_each_once(
    own_archive: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    shape = (11, 7, 8)
    files = write_series(tmp_path / "dicom", np.zeros(shape, np.int16), np.eye(4), Study("kills"))
    own_archive.upload(tmp_path / "dicom")
    image = uid("kills", "study", "series")
    server = serve(tmp_path, own_archive.url, labels="organ", retrain="false", returns_seconds="0.2", strategy="random")
    with server.client() as http:
        wait("the first look", lambda: looks(http))
    rng, stored = random.Random(0), list[str]()

    def store() -> None:
        for k in range(shape[2]):
            mask = np.zeros(shape, np.uint8)
            mask[2:5, 2:5, k] = 1
            content = ohif_seg(files, mask, ("organ",), f"kills {k}")
            stow(own_archive, content)
            stored.append(str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID))
            time.sleep(0.4)

    writer = threading.Thread(target=store, daemon=True)
    writer.start()
    wait("some SEGs", lambda: len(stored) > 2)
    time.sleep(rng.random() * 0.3)
    server.kill()
    server.start()
    writer.join(_SECONDS)
    with server.client() as http:
        wait("all to be recorded", lambda: [r["state"] for r in listed(http)].count("recorded") == shape[2])
        sent = http.get(f"/al/items/{image}").json()["submissions"]
        rows = listed(http)
    assert sorted(row["slices"] for row in sent) == [[k] for k in range(shape[2])]
    assert {row["instance"] for row in rows} == set(stored)
    assert {row["submission"] for row in rows} == {row["id"] for row in sent}
