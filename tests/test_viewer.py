"""The whole flow over HTTP, with MONAI Label's own client in the order in which 3D Slicer calls it."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

# The stock client reads multipart answers with a module that Python 3.11 and 3.12 still have, and warn about.
# It also leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collect_sockets() -> Iterator[None]:
    """Here, where their warning is ignored, and not in some later test."""
    yield
    gc.collect()


class Slicer:
    """3D Slicer's plugin without its windows: a new client for each call, /auth/ first, then the call."""

    def __init__(self, server: Any, folder: Path, name: str = "ann") -> None:
        self.server, self.folder, self.name = server, folder, name

    def client(self) -> Any:
        from monailabel.client.client import MONAILabelClient

        client = MONAILabelClient(self.server.url, str(self.folder), self.name)
        assert not client.auth_enabled()
        return client

    def connect(self) -> dict[str, Any]:
        info: dict[str, Any] = self.client().info()
        assert "config" not in info, "Slicer refuses a server that has it"
        assert not self.client().train_status(check_if_running=True)
        return info

    def next_sample(self, strategy: str, info: dict[str, Any]) -> dict[str, Any]:
        config = info["strategies"][strategy].get("config", {})
        chosen = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
        sample: dict[str, Any] = self.client().next_sample(strategy, chosen)
        return sample

    def open(self, sample: dict[str, Any]) -> sitk.Image:
        """Download the volume under its name, as SampleData does."""
        with self.server.client() as http:
            answer = http.get("/datastore/image", params={"image": sample["id"]})
        assert answer.status_code == 200
        file = self.folder / sample["name"]
        file.write_bytes(answer.content)
        return sitk.ReadImage(str(file))

    def original(self, sample: dict[str, Any], labels: list[str]) -> np.ndarray | None:
        """The mask so far, if there is one: values are the positions in label_names."""
        found = self.client().datastore()["objects"][sample["id"]]["labels"].get("original")
        if found is None:
            return None
        assert list(found["info"]["params"]["label_names"]) == labels
        return sitk.GetArrayFromImage(sitk.ReadImage(self.client().download_label(sample["id"], "original")))

    def submit(
        self, sample: dict[str, Any], volume: sitk.Image, mask: np.ndarray, labels: list[str], suffix: str = ".nii.gz"
    ) -> Any:
        """The whole volume as int16, with the image's geometry and Slicer's label_info; no slice number is sent."""
        image = sitk.GetImageFromArray(mask.astype(np.int16))
        image.CopyInformation(volume)
        file = self.folder / f"label{suffix}"
        sitk.WriteImage(image, str(file))
        info = [{"name": name, "idx": index} for index, name in enumerate(labels, 1)]
        answer = self.client().save_label(sample["id"], str(file), params={"label_info": info})
        self.client().info()
        self.client().train_status(check_if_running=True)
        return answer


def truth_of(server: Any, image_id: str) -> np.ndarray:
    """(k, j, i), as SimpleITK has it."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(server.truth / f"{image_id}.nii.gz")))


def test_the_slicer_flow(demo: Path, tmp_path: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, budget="4", slices_per_ticket="1", strategy="max_entropy")
    slicer = Slicer(server, tmp_path)
    info = slicer.connect()
    labels = info["labels"]
    assert labels == ["organ", "vessel", "wall", "lesion"]
    assert info["models"] == {}, "a model without weights is not offered"
    assert set(info["trainers"]) == {"unet2d"}
    assert next(iter(info["strategies"])) == "max_entropy", "the first is chosen unless told"

    done: dict[str, dict[int, np.ndarray]] = {}
    for visit in range(4):
        sample = slicer.next_sample("max_entropy", info)
        assert sample["name"] == f"{sample['id']}.nii.gz"
        assert "path" not in sample
        assert f"slice {sample['ask']['slices'][0]}" in sample["PatientID"]
        volume = slicer.open(sample)
        mask = slicer.original(sample, labels)
        mask = np.zeros(volume.GetSize()[::-1], np.int16) if mask is None else mask
        for index in sample["ask"]["slices"]:
            mask[index] = truth_of(server, sample["id"])[index]
            done.setdefault(sample["id"], {})[index] = mask[index].copy()
        answer = slicer.submit(sample, volume, mask, labels, ".nii.gz" if visit % 2 else ".nrrd")
        assert answer["slices"] == sample["ask"]["slices"]
        assert "Annotated slices" in answer["message"]

    progress = server.wait_for("the next round", lambda p: any(r["selected_by"] == "max_entropy" for r in p["rounds"]))
    assert progress["counts"]["labeled_slices"] == 4
    with server.client() as http:
        rounds = http.get("/al/rounds").json()
        assert [r["selected_by"] for r in rounds if r["strategy"] == "max_entropy"] == ["max_entropy", "spread"]
        assert http.get("/train/").json()["status"] == "DONE"
        for image_id, slices in done.items():
            shown = http.get("/datastore/label", params={"label": image_id, "tag": "final"}).content
            (tmp_path / "final.nii.gz").write_bytes(shown)
            final = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "final.nii.gz")))
            for index, plane in slices.items():
                assert np.array_equal(final[index], plane)

    info = slicer.connect()
    assert info["models"]["unet2d"]["type"] == "segmentation"
    assert info["train_stats"]["unet2d"]["epoch"] == 1
    assert {"total_time", "epoch", "total_epochs", "best_metric"} <= set(info["train_stats"]["unet2d"])
    sample = slicer.next_sample("max_entropy", info)
    file, params = slicer.client().infer("unet2d", sample["id"], {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert list(params["label_names"].items()) == [(name, value) for value, name in enumerate(labels, 1)]
    predicted = sitk.ReadImage(file)
    volume = slicer.open(sample)
    assert (predicted.GetSize(), predicted.GetPixelID()) == (volume.GetSize(), sitk.sitkUInt8)
    assert np.allclose(predicted.GetOrigin(), volume.GetOrigin(), atol=1e-4)
    assert np.allclose(predicted.GetDirection(), volume.GetDirection(), atol=1e-6)


def busy(progress: dict[str, Any]) -> bool:
    return bool(progress["running"]["train"] or progress["running"]["sweep"])


def test_a_second_visit_does_not_lose_the_first(demo: Path, tmp_path: Path, serve: Callable[..., Any]) -> None:
    """Even when the viewer starts from an empty mask, as Slicer does with "original label" switched off."""
    for image in sorted((demo / "images").glob("patient*.nii.gz"))[1:]:
        image.unlink()
    server = serve(demo, budget="2", slices_per_ticket="1", strategy="spread", retrain="false")
    slicer = Slicer(server, tmp_path)
    info = slicer.connect()
    truth = truth_of(server, "patient001")
    asked = []
    for _ in range(2):
        sample = slicer.next_sample("spread", info)
        volume = slicer.open(sample)
        mask = np.zeros(volume.GetSize()[::-1], np.int16)
        for index in sample["ask"]["slices"]:
            mask[index] = np.maximum(truth[index], 1)
        slicer.submit(sample, volume, mask, info["labels"])
        asked += sample["ask"]["slices"]
    assert len(set(asked)) == 2
    for tag in ("final", "original"):
        with server.client() as http:
            http.get("/datastore/label", params={"label": "patient001", "tag": tag}).raise_for_status()
        shown = nib.load(server.images / "labels" / tag / "patient001.nii.gz").get_fdata().transpose(2, 1, 0)
        for index in range(len(truth)):
            expected = np.maximum(truth[index], 1) if index in asked else 0
            assert np.array_equal(shown[index], np.broadcast_to(expected, shown[index].shape))
    with server.client() as http:
        facts = http.get("/al/items/patient001").json()
    assert len(facts["submissions"]) == 2
    server.stop()
    kept = sorted((server.images / ".nextslice" / "submissions").rglob("*.nii.gz"))
    assert len(kept) == 2, "every submission is kept as it was sent"


def test_annotators_at_once_and_an_expired_lease(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, budget="40", slices_per_ticket="2", strategy="random", lease_minutes="0.05", retrain="false")

    def ask(name: int) -> list[tuple[str, int]]:
        with server.client() as http:
            sample = http.post("/activelearning/random", json={"client_id": f"annotator {name}"}).json()
            return [(sample["id"], index) for index in sample["ask"]["slices"]]

    for annotators in (2, 8):
        with ThreadPoolExecutor(annotators) as threads:
            given = [item for items in threads.map(ask, range(10 * annotators, 11 * annotators)) for item in items]
        assert len(given) == len(set(given)) == 2 * annotators
    time.sleep(3.2)
    with server.client() as http:
        again = [http.post("/activelearning/random", json={}).json() for _ in range(20)]
    assert {(s["id"], i) for s in again for i in s["ask"]["slices"]} >= set(given), "expired leases are served again"


def test_new_images_are_found_while_the_server_runs(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, retrain="false")
    before = server.wait_for("images", lambda p: p["counts"]["images"] == 8)["counts"]["slices"]
    first = demo / "images" / "patient001.nii.gz"
    (demo / "images" / "patient099.nii.gz").write_bytes(first.read_bytes())
    (demo / "images" / "patient100.nii.gz").write_bytes(first.read_bytes()[:100])
    counts = server.wait_for(
        "the new images", lambda p: p["counts"]["images"] == 9 and p["counts"]["unreadable_images"] == 1
    )["counts"]
    assert counts["slices"] > before
    with server.client() as http:
        assert "could not be read" in http.get("/al/items/patient100").json()["error"]


def test_ohif_gets_the_default_strategy_under_the_name_random(demo: Path, serve: Callable[..., Any]) -> None:
    server = serve(demo, strategy="spread", random_serves_default="true")
    with server.client() as http:
        sample = http.post("/activelearning/random", json={}).json()
    assert sample["ask"]["strategy"] == "spread"


def test_rollback_and_events(demo: Path, serve: Callable[..., Any]) -> None:
    # Without patients held aside every label trains: two trainings with the same slices would be one model.
    server = serve(demo, budget="2", slices_per_ticket="1", strategy="max_entropy", validation_share="0")
    with server.client() as http:
        for count in (1, 2):
            for _ in range(2):
                sample = http.post("/activelearning/max_entropy", json={}).json()
                with open(server.truth / f"{sample['id']}.nii.gz", "rb") as label:
                    params = json.dumps({"ticket": sample["ask"]["ticket"]})
                    http.put(
                        "/datastore/label",
                        params={"image": sample["id"]},
                        data={"params": params},
                        files={"label": ("l.nii.gz", label)},
                    )
            server.wait_for(
                "a model",
                lambda p, n=count: len(http.get("/al/models").json()["models"]) == n and not busy(p) and p["rounds"],
            )
        models = http.get("/al/models").json()
        first, second = (card["digest"] for card in models["models"])
        assert models["current"] == second
        assert http.post("/al/models/0000000000000000/rollback").status_code == 404
        assert http.post(f"/al/models/{first}/rollback").status_code == 200
        server.wait_for(
            "a round with the old model",
            lambda p: any(r["model"] == first and r["state"] == "open" for r in p["rounds"]),
        )
        seen = []
        with http.stream("GET", "/al/events", params={"since": 0}) as stream:
            for line in stream.iter_lines():
                if line.startswith("event:"):
                    seen.append(line.removeprefix("event:").strip())
                if "rolled back" in line:
                    break
    assert [kind for kind in seen if kind in ("label_saved", "model_published")] == [
        "label_saved", "label_saved", "model_published", "label_saved", "label_saved", "model_published", "model_published",
    ]  # fmt: skip
    with server.client() as http:
        unlabeled = {"images": "unlabeled", "run_sync": True}
        answer = http.post("/batch/infer/unet2d", params=unlabeled, json={"max_batch_size": 1})
        assert answer.status_code == 200, answer.text
        (image_id,) = answer.json()
        assert http.get("/datastore/label", params={"label": image_id, "tag": "original"}).status_code == 200
        assert http.get("/datastore/label", params={"label": image_id, "tag": "final"}).status_code == 404
        assert http.get(f"/al/items/{image_id}").json()["n_labeled"] == 0, "a start mask annotates nothing"
    assert {"round_opened", "round_done", "train_started", "train_done", "ticket_opened"} <= set(seen)
