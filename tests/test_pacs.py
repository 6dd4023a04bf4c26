"""What a PACS tells the server, and the server the PACS: a real Orthanc with the script of docs/examples, and a real server."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bench.dicom_phantom import Study, uid, write_series
from bench.orthanc import Orthanc, missing
from datastore.volume_io import write_volume
from dicom.seg_writer import Author, write_seg
from dicom.series import read_series

ROOT = Path(__file__).parent.parent
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
NEVER = "3600"
"""rescan_seconds of servers that must be told."""


def send(archive: Orthanc, folder: Path, patient: str, series: str = "series", modality: str = "MR") -> dict[str, str]:
    """Send a series of 5 slices to the archive, as a scanner does; the UIDs that a webhook names."""
    array = np.arange(8 * 6 * 5, dtype=np.int16).reshape(8, 6, 5)
    write_series(folder / patient / series, array, AFFINE, Study(patient, series=series, modality=modality))
    archive.upload(folder / patient / series)
    return {"StudyInstanceUID": uid(patient, "study"), "SeriesInstanceUID": uid(patient, "study", series)}


def images(http: httpx.Client) -> int:
    return int(http.get("/al/progress").json()["counts"]["images"])


def test_a_server_that_is_told_of_a_series_knows_it_at_once(
    own_archive: Orthanc, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    server = serve(tmp_path, own_archive.url, labels="a", rescan_seconds=NEVER, archive_modalities="MR")
    first, second = (send(own_archive, tmp_path, "P1", series) for series in ("one", "two"))
    other = send(own_archive, tmp_path, "P1", "localizer", "CT")
    send(own_archive, tmp_path, "P2")
    with server.client() as http:
        assert images(http) == 0

        told = http.post("/al/studies", json=first).json()
        assert (told["images"], told["new"], images(http)) == ([first["SeriesInstanceUID"]],) * 2 + (1,)
        again = http.post("/al/studies", json=first).json()
        assert (again["images"], again["new"], images(http)) == ([first["SeriesInstanceUID"]], [], 1)

        study = http.post("/al/studies", json={"StudyInstanceUID": first["StudyInstanceUID"]}).json()
        assert sorted(study["images"]) == sorted([first["SeriesInstanceUID"], second["SeriesInstanceUID"]])
        assert study["new"] == [second["SeriesInstanceUID"]]

        nothing = http.post("/al/studies", json=other)
        assert (nothing.status_code, nothing.json()["images"]) == (200, [])
        assert "no series of MR" in nothing.json()["reason"]

        everything = http.post("/al/studies").json()
        assert (everything["new"], everything["counts"]["images"]) == ([uid("P2", "study", "series")], 3)

        series = httpx.post(f"{own_archive.root}/tools/lookup", content=second["SeriesInstanceUID"]).json()[0]["ID"]
        httpx.delete(f"{own_archive.root}/series/{series}")
        gone = http.post("/al/studies", json={"StudyInstanceUID": first["StudyInstanceUID"]}).json()
        assert (gone["gone"], images(http)) == ([second["SeriesInstanceUID"]], 2)

        wrong = http.post("/al/studies", json={"StudyInstanceUID": "../1.2*"})
        assert (wrong.status_code, "must be a UID" in wrong.json()["detail"]) == (400, True)
        own_archive.stop()
        down = http.post("/al/studies", json=first)
        assert (down.status_code, "cannot be reached" in down.json()["detail"]) == (503, True)
        assert images(http) == 2


def masks(folder: Path, image: np.ndarray) -> dict[str, bytes]:
    """Three labels of one grid, as .nii.gz."""
    found = {}
    for name, value in (("one", 1), ("two", 1), ("wrong", 9)):
        write_volume(folder / "mask.nii.gz", np.full(image.shape, value, np.uint8), AFFINE)
        found[name] = (folder / "mask.nii.gz").read_bytes()
    return found


def test_many_labels_are_told_at_once_and_a_bad_one_loses_no_other(
    archive: Orthanc, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    series = [send(archive, tmp_path, patient)["SeriesInstanceUID"] for patient in ("tell1", "tell2", "tell3")]
    server = serve(tmp_path, archive.url, labels="a", archive_conditions="PatientID=tell*", retrain="false")
    mask = masks(tmp_path, np.zeros((8, 6, 5)))
    with server.client() as http:
        tickets = http.post("/al/ask", json={"annotator": "ann", "n": 3}).json()["tickets"]
        mine = {ticket["image"]: ticket for ticket in tickets}
        assert set(mine) == set(series)
        http.get("/datastore/image", params={"image": series[2]})
        geometry = read_series(sorted((tmp_path / "tell3" / "series").glob("*.dcm"))).geometry
        author = Author("ann", datetime(2024, 1, 15, tzinfo=UTC))
        empty = write_seg(np.zeros(geometry.shape, np.uint8), geometry, {"a": 1}, author)
        box = io.BytesIO()
        with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as pack:
            pack.writestr("b.nii.gz", mask["two"])
            pack.writestr("segs/c.dcm", empty.content)
            pack.writestr("notes.txt", "hello")
        items = {
            "a.nii.gz": {"image": series[0], "annotated_slices": [1]},
            "b.nii.gz": {"ticket": mine[series[1]]["ticket"]},
        }
        told = http.post(
            "/al/tell",
            files=[
                ("labels", ("a.nii.gz", mask["one"])),
                ("labels", (f"{series[0]}.nii.gz", mask["wrong"])),
                ("labels", ("pack.zip", box.getvalue())),
            ],
            data={"params": json.dumps({"client_id": "ann", "items": items})},
        ).json()
        assert (told["saved"], told["refused"]) == (3, 2)
        a, wrong, b, c, notes = told["results"]
        assert (a["image"], a["slices"]) == (series[0], [1])
        assert (b["image"], b["slices"], b["ticket"]) == (
            series[1],
            mine[series[1]]["slices"],
            mine[series[1]]["ticket"],
        )
        assert (c["image"], c["slices"]) == (series[2], mine[series[2]]["slices"])
        assert (wrong["status"], "submission" in wrong) == (400, False)
        assert notes["status"] == 400
        assert "9" in wrong["error"]
        sent = {image: http.get(f"/al/items/{image}").json()["submissions"] for image in series}
        assert [len(sent[image]) for image in series] == [1, 1, 1]
        assert {row["annotator"] for rows in sent.values() for row in rows} == {"ann"}

        refused = http.post("/al/tell", files={"labels": ("x.zip", b"PK no")})
        assert (refused.status_code, "ZIP" in refused.json()["detail"]) == (400, True)
        lost = http.post(
            "/al/tell", files={"labels": ("a.nii.gz", b"")}, data={"params": '{"items": {"z.nii.gz": {}}}'}
        )
        assert (lost.status_code, "were not sent" in lost.json()["detail"]) == (400, True)


def test_of_a_folder_a_look_and_a_zip_that_unpacks_to_more_than_the_limit(
    demo: Path, serve: Callable[..., Any]
) -> None:
    settings = {"labels": "organ,vessel,wall,lesion", "max_upload_mb": "1", "retrain": "false"}
    server = serve(demo, rescan_seconds=NEVER, **settings)
    first, second, *_ = sorted((demo / "images").glob("*.nii.gz"))
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("bomb.nii.gz", bytes(4 << 20))
        pack.write(demo / "labels" / second.name, second.name)
    with server.client() as http:
        assert http.post("/al/studies", json={}).json()["counts"]["images"] == 8
        answer = http.post("/al/studies", json={"StudyInstanceUID": "1.2"})
        assert (answer.status_code, "files of a folder" in answer.json()["detail"]) == (400, True)
        first.rename(demo / "images" / "late.nii.gz")
        assert http.post("/al/studies").json()["counts"]["images"] == 8
        assert http.get("/al/items/late").json()["n_slices"] > 0

        told = http.post("/al/tell", files={"labels": ("all.zip", box.getvalue())}).json()
        assert [result.get("status") for result in told["results"]] == [413, None]
        assert told["results"][1]["image"] == second.name.removesuffix(".nii.gz")


def test_orthancs_script_tells_the_server_of_each_series(tmp_path: Path, serve: Callable[..., Any]) -> None:
    if reason := missing():
        pytest.skip(reason)
    settings = {"LuaScripts": [str(ROOT / "docs" / "examples" / "nextslice.lua")], "StableAge": 1}
    with Orthanc(tmp_path / "orthanc", settings, calls=8000) as archive:
        server = serve(tmp_path, archive.url, labels="a", rescan_seconds=NEVER)
        archive.answer_calls(server.port)
        named = send(archive, tmp_path, "P1")
        server.wait_for("the series", lambda p: p["counts"]["images"] == 1, 60)
        with server.client() as http:
            assert http.get(f"/al/items/{named['SeriesInstanceUID']}").json()["n_slices"] == 5
        assert "was told of series" in archive.log.read_text()


def segs_of(archive: Orthanc) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{archive.url}/series", params={"Modality": "SEG"}).json()
    return found


def test_the_example_turns_the_loop_once_from_outside_and_a_new_study_gets_its_prediction(
    own_archive: Orthanc, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    named = [send(own_archive, tmp_path, f"P{number}") for number in range(4)]
    settings = {"rescan_seconds": NEVER, "slices_per_ticket": "1", "budget": "4", "store_predictions": "true"}
    server = serve(tmp_path, own_archive.url, labels="bright", **settings)
    script = [sys.executable, str(ROOT / "docs" / "examples" / "pacs_loop.py")]
    addresses = ["--server", server.url, "--archive", own_archive.url]
    done = subprocess.run([*script, *addresses], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "knows 4 series" in done.stdout
    assert "3 labels were saved, 0 refused" in done.stdout
    segs = segs_of(own_archive)
    assert len(segs) == 1, "series from before the first model get no prediction"
    assert segs[0]["0020000D"]["Value"][0] in {uids["StudyInstanceUID"] for uids in named}
    with server.client() as http:
        assert http.get("/al/progress").json()["model"]
        links = http.get("/al/worklist").json()["entries"][0]["links"]
        assert links["slicer_study"].startswith("slicer://viewer/?studyUID=")

        new = send(own_archive, tmp_path, "late")
        http.post("/al/studies", json=new)
        series = new["SeriesInstanceUID"]

        def note() -> dict[str, Any] | None:
            found: dict[str, Any] = http.get("/datastore/image/info", params={"image": series}).json()
            return found.get("stored_prediction")

        server.wait_for("the prediction", lambda _: note() is not None, 60)
        stored = note()
        assert stored is not None
        digest = http.get("/al/model").json()["digest"]
        assert stored["model"] == digest
        there = [seg for seg in segs_of(own_archive) if seg["0020000D"]["Value"][0] == new["StudyInstanceUID"]]
        assert [seg["0020000E"]["Value"][0] for seg in there] == [stored["series"]]
        assert digest[:8] in there[0]["0008103E"]["Value"][0]
        # It is no answer of anybody, and it stays the only one.
        server.wait_for("a look at what came back", lambda _: _seen(http, stored["instance"]), 60)
        assert http.get(f"/al/items/{series}").json()["submissions"] == []
        assert len(segs_of(own_archive)) == 2


def _seen(http: httpx.Client, instance: str) -> bool:
    ours = http.get("/al/returns", params={"state": "ours"}).json()["returns"]
    return instance in {row["instance"] for row in ours}
