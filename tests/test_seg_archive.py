"""DICOM SEG through a real archive and a real server: sent as a label, given out, stored, and read back equal."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from bench.dicom_phantom import Study, write_series
from bench.phantom import write_phantoms
from datastore.folder import FolderDatastore
from datastore.seg_export import of_archive
from datastore.volume_io import read_volume, write_volume
from dicom.archive import Archive
from dicom.geometry import SeriesGeometry
from dicom.seg_reader import read_seg
from dicom.seg_writer import Author, Kind, write_seg
from dicom.series import read_series
from loop.config import AppConfig
from loop.errors import BadInput, Unavailable
from loop.rounds import Loop
from loop.store import Store

SHAPE = (51, 35, 8)
AFFINE = np.array([[-0.9, 0, 0, 10], [0, -0.78, -1.8, 20], [0, 1.04, -1.35, 30], [0, 0, 0, 1.0]])
VALUES = {"organ": 1, "lesion": 2}
SWAPPED = np.array([0, 2, 1], np.uint8)
"""Our values of masks that are sent with the names the other way round."""
ANN = Author("ann", datetime(2026, 1, 2))


def fill(archive: Any, folder: Path, patient: str, modality: str = "MR") -> SeriesGeometry:
    """Upload an oblique series with a bright box in it."""
    array = np.random.default_rng(1).integers(0, 100, SHAPE).astype(np.int16)
    array[10:30, 8:20] += 800
    files = write_series(folder / patient, array, AFFINE, Study(patient, modality=modality))
    archive.upload(folder / patient)
    return read_series(files).geometry


def box(*slices: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:30, 8:20, slices] = 1
    mask[12:16, 9:13, slices] = 2
    return mask


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_stored_and_fetched_again_it_is_equal(archive: Any, tmp_path: Path, kind: Kind) -> None:
    geometry = fill(archive, tmp_path, f"stow {kind}")
    client = Archive(archive.url)
    try:
        empty = np.zeros(SHAPE, np.uint8)
        for number, (mask, slices) in enumerate(
            ((box(*range(8)), None), (box(2, 5), [2, 5]), (empty, None), (empty, [3]))
        ):
            written = write_seg(mask, geometry, VALUES, ANN, slices=slices, kind=kind)
            for _ in range(2):  # a second time changes nothing
                client.store(geometry.study_uid, written.content)
            place = tmp_path / str(number)
            place.mkdir()
            files = client.fetch(geometry.study_uid, written.series_uid, place, most=1 << 24)
            found = read_seg(files[0], geometry)
            assert len(files) == 1
            assert np.array_equal(found.voxels, mask)
            assert found.written == tuple(slices or range(8))
            if shutil.which("dcmdump"):
                assert subprocess.run(["dcmdump", str(files[0])], capture_output=True, timeout=60).stderr == b""
        with pytest.raises(BadInput, match="answers 4"):
            client.store(geometry.study_uid, b"no DICOM")
    finally:
        client.close()


def test_an_archive_that_is_down_stores_nothing_and_says_so(own_archive: Any, tmp_path: Path) -> None:
    geometry = fill(own_archive, tmp_path, "down")
    written = write_seg(box(1), geometry, VALUES, ANN)
    client = Archive(own_archive.url, pauses=())
    try:
        own_archive.stop()
        with pytest.raises(Unavailable, match="Nothing was stored"):
            client.store(geometry.study_uid, written.content)
        own_archive.start()
        client.store(geometry.study_uid, written.content)
    finally:
        client.close()


def send(http: httpx.Client, image: str, content: bytes, params: Mapping[str, Any]) -> httpx.Response:
    return http.put(
        "/datastore/label", params={"image": image}, files={"label": ("seg.dcm", content)}, data={"params": json.dumps(params)}
    )  # fmt: skip


def composite(http: httpx.Client, image: str, folder: Path, tag: str = "final") -> npt.NDArray[Any]:
    answer = http.get("/datastore/label", params={"label": image, "tag": tag})
    assert answer.status_code == 200, answer.text
    (folder / "composite.nii.gz").write_bytes(answer.content)
    return read_volume(folder / "composite.nii.gz").array


def seg_of(answer: httpx.Response, folder: Path) -> Path:
    assert answer.status_code == 200, answer.text
    (folder / "found.dcm").write_bytes(answer.content)
    return folder / "found.dcm"


SETTINGS = {"labels": "organ,lesion", "retrain": "false", "strategy": "spread", "slices_per_ticket": "2", "budget": "4"}


def known(http: Any, image: str) -> dict[str, Any]:
    """All that is known of an image, but which of its other slices a round asks for: one may open meanwhile."""
    item: dict[str, Any] = http.get(f"/al/items/{image}").json()
    slices = [row if row["state"] not in ("open", "asked") else {"slice": row["slice"]} for row in item["slices"]]
    return {**item, "slices": slices}


def test_a_seg_is_a_label_the_composite_is_a_seg_and_both_survive_a_restart(
    archive: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    geometry = fill(archive, tmp_path, "seg-label")
    image = geometry.series_uid
    (tmp_path / "server").mkdir()
    server = serve(tmp_path / "server", archive.url, archive_conditions="PatientID=seg-label", **SETTINGS)
    with server.client() as http:
        ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
        asked = ticket["slices"]
        free = [k for k in range(8) if k not in asked]
        # A start mask of a model, which the viewer sends back with what was painted.
        start = SWAPPED[box(free[0], free[1])]
        file = tmp_path / "start.nii.gz"
        write_volume(file, start, geometry.matrix)
        with open(file, "rb") as label:
            sent = http.put(
                "/datastore/label", params={"image": image, "tag": "original"}, files={"label": ("start.nii.gz", label)}
            )
        assert sent.status_code == 200, sent.text
        # Painted: one of the asked slices, the other is empty; and one that was not asked for. OHIF writes painted ones only.
        mask = box(asked[0], free[0], free[1], free[2])
        painted = sorted({asked[0], *free[:3]})
        content = write_seg(mask, geometry, {"lesion": 1, "ORGAN": 2}, ANN, slices=painted).content
        answer = send(http, image, content, {"client_id": "ann", "ticket": ticket["ticket"]})
        assert answer.status_code == 200, answer.text
        assert send(http, image, content, {"client_id": "ann", "ticket": ticket["ticket"]}).json() == answer.json()
        assert answer.json()["slices"] == sorted({*asked, free[2]})
        assert answer.json()["ticket"] == ticket["ticket"]
        expected = SWAPPED[box(asked[0], free[2])]
        assert np.array_equal(composite(http, image, tmp_path), expected)
        # An answer that is empty, without a ticket: its frames say of which slices.
        nothing = write_seg(np.zeros(SHAPE, np.uint8), geometry, VALUES, ANN, slices=[free[3]])
        assert send(http, image, nothing.content, {"client_id": "other"}).json()["slices"] == [free[3]]
        # Named slices go before what is painted.
        named = write_seg(box(free[4]), geometry, VALUES, ANN)
        answer = send(http, image, named.content, {"client_id": "other", "annotated_slices": [free[4], free[5]]})
        assert answer.json()["slices"] == sorted([free[4], free[5]])
        expected[:, :, free[4]] = box(free[4])[:, :, free[4]]
        annotated = tuple(sorted({*asked, *free[2:6]}))
        for kind in ("labelmap", "binary"):
            found = read_seg(seg_of(http.get(f"/al/items/{image}/seg", params={"kind": kind}), tmp_path), geometry)
            assert np.array_equal(found.voxels, expected)
            assert (found.written, found.description) == (annotated, "NextSlice annotator ann, other")
        begun = http.get(f"/al/items/{image}/seg", params={"tag": "original", "slices": "all"})
        begun_voxels = read_seg(seg_of(begun, tmp_path), geometry).voxels
        assert np.array_equal(begun_voxels, composite(http, image, tmp_path, "original"))
        # Into the archive; the second time it is the same instance.
        stored = [http.post(f"/al/items/{image}/store", json={}).json() for _ in range(2)]
        assert stored[0] == stored[1]
        # What is no label of this image changes nothing.
        before = known(http, image)
        other = fill(archive, tmp_path, "seg-other")
        for wrong, reason in (
            (write_seg(mask, other, VALUES, ANN).content, "frame of reference"),
            (write_seg(mask, geometry, {"liver": 1, "x": 2}, ANN).content, "organ, lesion"),
            (content[:-200], "DICOM SEG"),
            (b"", "DICOM"),
        ):
            refused = send(http, image, wrong, {"client_id": "ann"})
            assert refused.status_code == 400, refused.text
            assert reason in refused.json()["detail"]
        assert known(http, image) == before
        missing = http.post(f"/al/items/{image}/store", json={"what": "prediction"})
        assert missing.status_code == 409, missing.text
        assert http.get("/al/items/1.2.3/seg").status_code == 404
    client = Archive(archive.url)
    (tmp_path / "fetched").mkdir()
    files = client.fetch(geometry.study_uid, stored[0]["series"], tmp_path / "fetched", most=1 << 24)
    client.close()
    assert np.array_equal(read_seg(files[0], geometry).voxels, expected)
    # A server that starts again composes from what was sent.
    server.stop()
    kept = sorted((tmp_path / "server" / "state" / "submissions").rglob("*.dcm"))
    assert len(kept) == 3
    assert content in [path.read_bytes() for path in kept]
    (tmp_path / "server" / "state" / "labels" / "final" / f"{image}.nii.gz").unlink()
    server.start()
    with server.client() as http:
        assert np.array_equal(composite(http, image, tmp_path), expected)


def test_a_prediction_into_the_archive(archive: Any, tmp_path: Path, serve: Callable[..., Any]) -> None:
    geometry = fill(archive, tmp_path, "seg-model")
    image = geometry.series_uid
    (tmp_path / "server").mkdir()
    training = {"epochs": "1", "steps_per_epoch": "2", "batch_size": "2", "validation_share": "0"}
    server = serve(
        tmp_path / "server", archive.url, archive_conditions="PatientID=seg-model", **{**SETTINGS, **training}
    )
    with server.client() as http:
        content = write_seg(box(2, 4), geometry, VALUES, ANN).content
        assert send(http, image, content, {"annotated_slices": [2, 4]}).status_code == 200
        model = http.get("/al/model").json()["name"]
        assert http.post(f"/train/{model}").status_code == 200
    server.wait_for("a model", lambda p: p["model"], 120)
    with server.client() as http:
        answer = http.post(f"/al/items/{image}/store", json={"what": "prediction", "kind": "binary"}, timeout=120)
        assert answer.status_code == 200, answer.text
        again = http.post(f"/al/items/{image}/store", json={"what": "prediction", "kind": "binary"}, timeout=120)
        assert again.json() == answer.json()
        predicted = http.post(
            f"/infer/{model}",
            params={"image": image, "output": "image"},
            data={"params": json.dumps({"result_extension": ".nii.gz"})},
            timeout=120,
        )
        (tmp_path / "mask.nii.gz").write_bytes(predicted.content)
        digest = http.get("/al/model").json()["digest"]
    client = Archive(archive.url)
    files = client.fetch(geometry.study_uid, answer.json()["series"], tmp_path, most=1 << 24)
    client.close()
    found = read_seg(files[0], geometry)
    assert np.array_equal(found.voxels, read_volume(tmp_path / "mask.nii.gz").array)
    assert found.written == tuple(range(8))
    assert found.description == f"NextSlice model {model} {digest[:8]}"
    segment = pydicom.dcmread(files[0]).SegmentSequence[0]
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == digest[:64]


def test_images_of_a_folder_have_no_seg(tmp_path: Path) -> None:
    write_phantoms(tmp_path, patients=1, seed=0)
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    datastore = FolderDatastore(tmp_path / "images", tmp_path / "state", Loop(store, AppConfig()))
    datastore.refresh()
    (tmp_path / "seg.dcm").write_bytes(b"any")
    with pytest.raises(BadInput, match="of an archive only"):
        datastore.submit(datastore.loop.catalogue.ids(labeled=False)[0], tmp_path / "seg.dcm")
    with pytest.raises(BadInput, match="of an archive only"):
        of_archive(datastore)
    store.close()
