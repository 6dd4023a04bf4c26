"""The whole loop over HTTP on real series in a real archive: cardiac MRI made DICOM here, and DICOM as scanners write it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from bench.dicom_phantom import Study, uid, write_series
from bench.seg_phantom import ohif_seg
from datastore.volume_io import read_volume
from dicom.archive import Archive
from dicom.seg_reader import read_seg
from dicom.series import read_series

LABELS = ("rv", "myo", "lv")
PATIENTS = ("patient001", "patient002", "patient003")
FRAMES_OF = 2

_SECONDS = 120

Array = npt.NDArray[Any]


class Cardiac:
    """A volume of the challenge, and the series it is in the archive."""

    def __init__(self, image: Path, label: Path, folder: Path) -> None:
        volume = read_volume(image)
        patient, _, frame = image.name.removesuffix(".nii.gz").partition("_")
        study = Study(patient, series=frame)
        self.files = write_series(folder / patient / frame, volume.array.astype(np.int16), volume.affine, study)
        self.voxels, self.truth = volume.array, read_volume(label).array.astype(np.uint8)
        self.id, self.study = uid(patient, study.study, frame), uid(patient, study.study)

    def seg_in(self, archive: Archive, series: str, folder: Path) -> Any:
        """What the archive gives for a SEG series of this image."""
        folder.mkdir()
        (file,) = archive.fetch(self.study, series, folder, most=1 << 26)
        return read_seg(file, read_series(self.files).geometry)


def composite(http: httpx.Client, image: str, folder: Path) -> Array:
    answer = http.get("/datastore/label", params={"label": image, "tag": "final"}).raise_for_status()
    (folder / "composite.nii.gz").write_bytes(answer.content)
    return read_volume(folder / "composite.nii.gz").array


def send(http: httpx.Client, image: str, seg: bytes, **params: Any) -> dict[str, Any]:
    answer = http.put(
        "/datastore/label", params={"image": image}, files={"label": ("seg.dcm", seg)}, data={"params": json.dumps(params)}
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.slow
def test_ask_label_seg_retrain_and_the_next_round(
    own_archive: Any, tmp_path: Path, shared_data: Path, serve: Callable[..., Any]
) -> None:
    acdc = shared_data / "acdc"
    images = [file for patient in PATIENTS for file in sorted((acdc / "images").glob(f"{patient}_*.nii.gz"))]
    assert len(images) == FRAMES_OF * len(PATIENTS)
    series = [Cardiac(image, acdc / "labels" / image.name, tmp_path / "dicom") for image in images]
    hearts = {heart.id: heart for heart in series}
    own_archive.upload(tmp_path / "dicom")
    own_archive.upload(shared_data / "dicom")
    server = serve(
        tmp_path, own_archive.url, labels=",".join(LABELS), strategy="max_entropy", budget="6", slices_per_ticket="2",
        rescan_seconds="1", returns_seconds="0.3", validation_share="0", retrain_after="100",
    )  # fmt: skip
    client = Archive(own_archive.url)
    with server.client() as http:
        everything = http.get("/datastore/", params={"output": "all"}).json()["objects"]
        assert set(hearts) < set(everything)
        others = set(everything) - set(hearts)
        assert len(others) == 4, "the scanners' own series are in the pool too"
        for image in sorted(everything):
            answer = http.get("/datastore/image", params={"image": image})
            assert answer.status_code == 200, answer.text
            if image in hearts:
                (tmp_path / "image.nii.gz").write_bytes(answer.content)
                assert np.array_equal(read_volume(tmp_path / "image.nii.gz").array, hearts[image].voxels)
        # The scanners' own hold no heart: every slice of them is empty.
        for image in sorted(others):
            slices = [row["slice"] for row in http.get(f"/al/items/{image}").json()["slices"]]
            skipped = http.post(f"/al/items/{image}/skip", json={"slices": slices, "reason": "no heart"})
            assert skipped.status_code == 200, skipped.text

        full, sparse, empty = series[0], series[2], series[4]
        everywhere = list(range(full.truth.shape[2]))
        send(http, full.id, ohif_seg(full.files, full.truth, LABELS, "full"), annotated_slices=everywhere)
        few = [2, 5]
        some = np.zeros_like(sparse.truth)
        some[:, :, few] = sparse.truth[:, :, few]
        assert some.any()
        send(http, sparse.id, ohif_seg(sparse.files, some, LABELS, "sparse", slices=few), annotated_slices=few)
        nothing = np.zeros_like(empty.truth)
        send(http, empty.id, ohif_seg(empty.files, nothing, LABELS, "empty", slices=[0]), annotated_slices=[0])
        expected = ((full, full.truth, everywhere), (sparse, some, few), (empty, nothing, [0]))
        for heart, mask, slices in expected:
            assert np.array_equal(composite(http, heart.id, tmp_path), mask)
            for kind in ("labelmap", "binary"):
                stored = http.post(f"/al/items/{heart.id}/store", json={"kind": kind})
                assert stored.status_code == 200, stored.text
                found = heart.seg_in(client, stored.json()["series"], tmp_path / f"{heart.id} {kind}")
                assert np.array_equal(found.voxels, mask)
                assert found.written == tuple(slices)

        # A whole round through the archive alone, then a training, and a round that the model chose.
        answered = 0
        while tickets := http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"]:
            ticket = tickets[0]
            heart, asked = hearts[ticket["image"]], ticket["slices"]
            drawn = np.zeros_like(heart.truth)
            drawn[:, :, asked] = heart.truth[:, :, asked]
            client.store(heart.study, ohif_seg(heart.files, drawn, LABELS, f"answer {answered}", slices=asked))
            answered += len(asked)
            wait(http, ticket["ticket"])
            found = composite(http, heart.id, tmp_path)
            assert np.array_equal(found[:, :, asked], drawn[:, :, asked])
            if answered >= 6:
                break
        trained = http.post("/train/unet2d", json={"epochs": 2, "steps_per_epoch": 5}, params={"run_sync": True})
        assert trained.json()["status"] == "DONE", trained.text
        server.wait_for(
            "a round of the model",
            lambda p: p["model"] and any(row["selected_by"] == "max_entropy" for row in p["rounds"]),
        )
        ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
        labeled = {
            row["slice"]
            for row in http.get(f"/al/items/{ticket['image']}").json()["slices"]
            if row["state"] == "labeled"
        }
        assert ticket["image"] in hearts
        assert not labeled & set(ticket["slices"])
        predicted = http.post(f"/al/items/{ticket['image']}/store", json={"what": "prediction"}).json()
        heart = hearts[ticket["image"]]
        assert heart.seg_in(client, predicted["series"], tmp_path / "predicted").voxels.shape == heart.truth.shape
    client.close()


def wait(http: httpx.Client, ticket: str) -> None:
    until = time.monotonic() + _SECONDS
    while http.get(f"/al/tickets/{ticket}").json()["state"] != "submitted":
        assert time.monotonic() < until, http.get("/al/returns").text
        time.sleep(0.1)
