"""Predictions made ahead, and the map: kept whole, renewed with the model, and served to pages by a real server."""

import gzip
import io
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import models
from bench.phantom import LABELS, SMALL, write_phantoms
from datastore.volume_io import Volume, read_volume
from infers.engine import Segmenter, scaled_entropy
from loop import pool_map, previewing
from loop.catalogue import Found
from loop.conductor import Conductor
from loop.config import AppConfig
from loop.previews import Previews, Section
from loop.rounds import Loop, Swept
from loop.store import Store
from loop.workplace import Workplace

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = 120
HOSTILE = "ward <b>é'\" 1/prediction"


# --- the engine


@pytest.mark.parametrize(("name", "axis"), [("unet2d", 2), ("unet2d", 0), ("unet3d", 2)])
def test_the_uncertainty_is_the_entropy_of_what_is_predicted(name: str, axis: int) -> None:
    spec = models.get(name, labels=("a", "b"))
    segmenter = Segmenter(spec, None, device=torch.device("cpu"), batch=3, seed=1)
    volume = Volume(np.random.default_rng(0).normal(size=(32, 24, 16)), np.eye(4))
    mask, uncertainty = segmenter.predict_with_uncertainty(volume, axis)
    np.testing.assert_array_equal(mask, segmenter.predict(volume, axis))
    assert uncertainty.shape == volume.array.shape
    assert uncertainty.dtype == np.uint8


def test_the_entropy_goes_from_0_to_255() -> None:
    probs = torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]).T[None, :, :]
    assert scaled_entropy(probs).tolist() == [[0, 255, round(255 * np.log(2) / np.log(3))]]


# --- what is kept


def section(value: int) -> Section:
    plane = np.full((4, 4), value, np.uint8)
    return Section(plane.astype(np.int16), plane, plane)


def keep(previews: Previews, image: str, digest: str, value: int) -> None:
    array = np.full((4, 4, 3), value, np.uint8)
    previews.keep(image, "1", digest, array, array, np.eye(4), {1: section(value)})


def test_an_earlier_model_stands_in_until_the_current_one_has_predicted(tmp_path: Path) -> None:
    previews = Previews(tmp_path / "previews")
    assert previews.newest("a", "1", "new") is None
    keep(previews, "a", "old", 1)
    found = previews.newest("a", "1", "new")
    assert found is not None
    assert found.digest == "old"
    assert previews.newest("a", "2", "new") is None, "the file changed since"
    keep(previews, "a", "new", 2)
    newer = previews.newest("a", "1", "new")
    assert newer is not None
    assert (newer.digest, int(read_volume(newer.mask).array.max())) == ("new", 2)
    there = newer.section(1)
    assert there is not None
    assert (there.mask == 2).all()
    assert newer.section(2) is None
    assert newer.lacks([0, 1, 2]) == [0, 2]


def test_old_models_and_what_nobody_wants_go(tmp_path: Path) -> None:
    previews = Previews(tmp_path / "previews")
    keep(previews, "a", "old", 1)
    for number, image in enumerate("abcd"):
        keep(previews, image, "new", number)
        folder = previews.of(image, "1", "new")
        assert folder is not None
        shutil.os.utime(folder.folder, (number, number))
    (tmp_path / "previews" / "new" / ".killed").mkdir()
    previews.keep_only("new", {("a", "1")}, most=2)
    assert [image for image in "abcd" if previews.of(image, "1", "new")] == ["a", "d"]
    assert {path.name for path in (tmp_path / "previews").iterdir()} == {"new"}
    assert not (tmp_path / "previews" / "new" / ".killed").exists()


# --- what is due


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Four images of six slices, without files, and an open round."""
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    loop = Loop(store, AppConfig(labels=LABELS, budget=3, seed=4))
    found = [Found(f"p{n}", f"p{n}.nii.gz", "1", (8, 8, 6), (1.0, 1.0, 3.0)) for n in range(4)]
    loop.catalogue.sync(found, [], 0.0)
    loop.plan("random", lambda *_: Swept({}, np.zeros(24, bool)), model=None)
    yield loop
    store.close()


def test_the_images_of_open_rounds_are_due_first_asked_first(loop: Loop) -> None:
    items = loop.round(1)["items"]
    order = list(dict.fromkeys(item["image"] for item in items))
    wanted = previewing.asked(loop.store, 10)
    assert [image.image_id for image in wanted] == order
    assert {(image.image_id, index) for image in wanted for index in image.slices} == {
        (item["image"], item["slice"]) for item in items
    }
    other = next(f"p{n}" for n in range(4) if f"p{n}" not in order)
    assert [image.image_id for image in previewing.asked(loop.store, 2, [other, "no such"])] == [other]
    loop.catalogue.mark_unreadable(order[0], "broken", 0.0)
    assert order[0] not in [image.image_id for image in previewing.asked(loop.store, 10)]


def test_a_prediction_without_one_of_the_asked_slices_is_due_again(loop: Loop, tmp_path: Path) -> None:
    previews, wanted = Previews(tmp_path / "previews"), previewing.asked(loop.store, 10)
    assert previewing.lacking(previews, "m", wanted) == wanted
    first = wanted[0]
    array = np.zeros((8, 8, 6), np.uint8)
    previews.keep(first.image_id, "1", "m", array, array, np.eye(4), {})
    assert first in previewing.lacking(previews, "m", wanted)
    kept = previews.of(first.image_id, "1", "m")
    assert kept is not None
    for index in first.slices:
        kept.keep_section(index, section(0))
    assert previewing.lacking(previews, "m", wanted) == wanted[1:]


@pytest.mark.parametrize("kind", ["preview", "map"])
def test_a_training_or_a_sweep_goes_before_what_is_made_for_people_to_see(
    loop: Loop, tmp_path: Path, kind: str
) -> None:
    workplace = Workplace(tmp_path, tmp_path, tmp_path, loop.store.url, loop.config.to_json())
    conductor = Conductor(loop, workplace)
    child = get_context("spawn").Process(target=time.sleep, args=(SECONDS,))
    child.start()
    job = loop.jobs.queue(kind, "unet2d", {}, "to be seen")
    loop.jobs.start(job["id"], "m")
    conductor._children[kind] = (job["id"], child)
    conductor._give_way()
    assert child.is_alive(), "nothing else is due"
    loop.jobs.queue("sweep", "random", {"strategies": ["random"]}, "due")
    conductor._give_way()
    assert not child.is_alive()
    ended = loop.jobs.get(job["id"])
    assert (ended["state"], ended["message"]) == ("stopped", "it gave way to a training or a sweep")
    loop.jobs.queue(kind, "unet2d", {}, "to be seen")
    conductor._start_queued(kind)
    assert not conductor._children, "it waits while the sweep is due"
    conductor.close()


def test_of_a_large_pool_a_map_shows_what_is_asked_for_and_a_seeded_part(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = loop.catalogue.build_pool()
    assert pool_map._chosen(loop, pool, np.random.default_rng(0)).all()
    before = pool_map.purpose(loop)
    monkeypatch.setattr(pool_map, "MOST_ITEMS", 5)
    chosen = pool_map._chosen(loop, pool, np.random.default_rng(0))
    asked = {(item["image"], item["slice"]) for item in loop.round(1)["items"]}
    there = {(pool.items[int(row)].image_id, pool.items[int(row)].slice) for row in np.flatnonzero(chosen)}
    assert len(there) == 5
    assert asked < there
    np.testing.assert_array_equal(chosen, pool_map._chosen(loop, pool, np.random.default_rng(0)))
    assert pool_map.purpose(loop) != before, "another round must find its items on the map"


# --- the server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, live_server: type) -> Iterator[Any]:
    """Four phantom patients and one with a hostile name, not trained yet."""
    root = tmp_path_factory.mktemp("previews") / "demo"
    write_phantoms(root, patients=4, seed=1, shape=SMALL)
    hostile = root / "images" / f"{HOSTILE}.nii.gz"
    hostile.parent.mkdir()
    shutil.copy(root / "images" / "patient004.nii.gz", hostile)
    conf = {"epochs": "1", "steps_per_epoch": "2", "batch_size": "2", "budget": "4", "retrain": "false"}
    started = live_server(root, conf).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def http(server: Any) -> Iterator[Any]:
    with server.client() as client:
        yield client


def until(what: str, ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited for {what}")


def picture(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_before_there_is_a_model_pages_are_told_so(http: Any) -> None:
    for what in ("prediction", "uncertainty"):
        answer = http.get(f"/al/items/patient001/{what}")
        assert answer.status_code == 404
        assert "no model yet" in answer.json()["detail"]
    answer = http.get("/al/map")
    assert (answer.status_code, "no model yet" in answer.json()["detail"]) == (409, True)
    answer = http.get("/al/items/patient001/thumbnail/3.png", params={"contour": 1, "heat": 1, "label": 1})
    assert picture(answer).max() > 100
    assert answer.headers["x-drawn"] == ""


@pytest.fixture(scope="module")
def digest(server: Any, http: Any) -> str:
    """Of a model; two patients are annotated."""
    for image in ("patient001", "patient003"):
        with open(server.truth / f"{image}.nii.gz", "rb") as mask:
            sent = http.put(f"/datastore/label?image={image}", files={"label": (f"{image}.nii.gz", mask)})
        assert sent.status_code == 200, sent.text
    trained = http.post("/train/unet2d?run_sync=true", json={})
    assert trained.status_code == 200, trained.text
    return str(trained.json()["result"]["digest"])


def test_what_a_round_asks_for_is_predicted_ahead(server: Any, http: Any, digest: str) -> None:
    def opened() -> Any:
        rounds = http.get("/al/rounds").json()
        return rounds and rounds[0]["model"] == digest and rounds[0]["state"] == "open" and rounds[0]["id"]

    items = http.get(f"/al/rounds/{until('a round of the model', opened)}").json()["items"]
    assert items
    for item in items:
        image, index = item["image"], item["slice"]
        path = f"/al/items/{image}/prediction"
        until("a prediction", lambda path=path: http.get(path).status_code == 200)
        found = http.get(path)
        assert found.headers["x-model"] == digest
        assert found.headers["x-model-current"] == "true"
        mask = nib.Nifti1Image.from_bytes(gzip.decompress(found.content))
        original = nib.load(server.images / f"{image}.nii.gz")
        assert mask.shape == original.shape
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, original.affine, atol=1e-4)
        assert np.asarray(mask.dataobj).max() <= len(LABELS)
        tag = {"If-None-Match": found.headers["etag"]}
        assert http.get(path, headers=tag).status_code == 304
        assert http.get(f"/al/items/{image}/uncertainty").status_code == 200
        drawn = http.get(f"/al/items/{image}/thumbnail/{index}.png?contour=1&heat=1")
        assert drawn.headers["x-drawn"] == "contour,heat"
        plain = picture(http.get(f"/al/items/{image}/thumbnail/{index}.png"))
        assert (picture(drawn) != plain).any()
        assert max(plain.shape[:2]) == 256
        again = http.get(
            f"/al/items/{image}/thumbnail/{index}.png?contour=1&heat=1",
            headers={"If-None-Match": drawn.headers["etag"]},
        )
        assert again.status_code == 304


def test_an_image_that_nobody_was_asked_for_is_predicted_when_somebody_looks(http: Any, digest: str) -> None:
    first = http.get("/al/items/patient001/prediction")
    if first.status_code == 404:
        assert "try again" in first.json()["detail"]
        assert int(first.headers["retry-after"]) > 0
    until("a prediction", lambda: http.get("/al/items/patient001/prediction").status_code == 200)


def test_annotated_slices_are_drawn_and_others_are_not(http: Any, digest: str) -> None:
    labelled = http.get("/al/items/patient001/thumbnail/middle.png?label=1")
    assert labelled.headers["x-drawn"] == "label"
    assert (picture(labelled) != picture(http.get("/al/items/patient001/thumbnail/middle.png"))).any()
    assert http.get("/al/items/patient002/thumbnail/middle.png?label=1").headers["x-drawn"] == ""


def test_any_name_of_an_image_is_only_a_name(http: Any, digest: str) -> None:
    assert picture(http.get(f"/al/items/{HOSTILE}/thumbnail/middle.png")).any()
    until("a prediction", lambda: http.get(f"/al/items/{HOSTILE}/prediction").status_code == 200)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("patient001/thumbnail/99.png", 404, "has slices 0 to"),
        ("patient001/thumbnail/-1.png", 400, "whole number"),
        ("patient001/thumbnail/1e3.png", 400, "whole number"),
        ("patient001/thumbnail/99999999999.png", 400, "whole number"),
        ("patient001/thumbnail/%00.png", 400, "whole number"),
        ("patient001/thumbnail/1.png?size=9999", 422, "1024"),
        ("nobody/thumbnail/1.png", 404, "no image"),
        ("../../etc/passwd/thumbnail/1.png", 404, ""),
        ("%2e%2e/%2e%2e/etc/passwd/prediction", 404, "no image"),
        ("nobody/prediction", 404, "no image"),
        (f"{'x' * 3000}/uncertainty", 404, "no image"),
    ],
)
def test_what_is_not_there_is_said(http: Any, path: str, status: int, said: str) -> None:
    answer = http.get(f"/al/items/{path}")
    assert (answer.status_code, said in answer.text) == (status, True), answer.text


def test_the_map_shows_every_item_and_what_it_is(http: Any, digest: str) -> None:
    def made(query: str) -> Any:
        answer = http.get(f"/al/map{query}")
        assert answer.status_code in (200, 202), answer.text
        return answer.status_code == 200 and not answer.json()["stale"] and answer.json()

    found = until("the map", lambda: made(""))
    total = http.get("/al/progress").json()["counts"]["slices"]
    assert found["pool"] == len(found["x"]) == len(found["y"]) == len(found["score"]) == len(found["state"]) == total
    assert min(found["x"] + found["y"]) >= 0
    assert max(found["x"] + found["y"]) <= 1
    assert (found["method"], found["signal"], found["model"]) == ("tsne", "bottleneck_features", digest)
    assert HOSTILE in found["images"]

    def count(state: str) -> int:
        return sum(found["states"][number] == state for number in found["state"])

    counts = http.get("/al/progress").json()["counts"]
    assert count("labeled") == counts["labeled_slices"]
    assert count("asked") == len(found["asked"]) == 4
    asked = next(iter(found["asked"].values()))
    assert {"score", "why", "round"} == set(asked)

    ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
    found = made("?method=pca")
    assert found, "both layouts are made at once"
    leased = {(found["images"][found["image"][row]], found["slice"][row])
              for row, number in enumerate(found["state"]) if found["states"][number] == "leased"}  # fmt: skip
    assert leased == {(ticket["image"], index) for index in ticket["slices"]}


@pytest.mark.parametrize("query", ["method=umap", "signal=nothing"])
def test_another_map_than_those_there_are_is_refused_by_name(http: Any, query: str) -> None:
    answer = http.get(f"/al/map?{query}")
    assert (answer.status_code, "Known" in answer.json()["detail"]) == (404, True)


def test_a_newer_model_predicts_anew_and_the_old_predictions_go(server: Any, http: Any, digest: str) -> None:
    trained = http.post("/train/unet2d?run_sync=true", json={"seed": 5})
    newer = trained.json()["result"]["digest"]
    assert newer != digest
    answer = http.get("/al/items/patient001/prediction")
    assert (answer.status_code, answer.headers["x-model-current"]) in ((200, "false"), (200, "true"))

    def renewed() -> bool:
        held = http.get("/al/items/patient001/prediction").headers.get("x-model")
        folders = {folder.name for folder in (server.images / ".nextslice" / "previews").iterdir()}
        return bool(held == newer and folders == {newer})

    until("predictions of the newer model alone", renewed)
