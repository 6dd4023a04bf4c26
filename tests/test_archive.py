"""An archive as the source of images: a real Orthanc, a real server, and what happens when the archive does not behave."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest

from bench.dicom_phantom import Study, uid, write_series
from bench.phantom import SMALL, write_phantoms
from datastore.archive import ArchiveDatastore, parse_conditions
from datastore.volume_io import read_volume, write_volume
from dicom.archive import Archive, ListedSeries
from dicom.images import ArchiveImages
from loop.config import AppConfig
from loop.errors import BadInput, Conflict, Forbidden, Unavailable
from loop.rounds import Loop
from loop.store import Store

LABELS = "organ,vessel,wall,lesion"
MORE = 40
"""Series that come later: so many that fetching them takes a while."""
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def series_uid(patient: str) -> str:
    return uid(patient, "study", "series")


def fill(archive: Any, folder: Path, patient: str, array: np.ndarray | None = None) -> str:
    """Upload a series of a patient; its id."""
    array = np.arange(8 * 6 * 5, dtype=np.int16).reshape(8, 6, 5) if array is None else array
    write_series(folder / patient, array, AFFINE, Study(patient))
    archive.upload(folder / patient)
    return series_uid(patient)


@dataclass
class Place:
    """A datastore on an archive, as the server has it, without the server."""

    folder: Path
    url: str
    limit: int = 1 << 30
    conditions: str = ""

    def __post_init__(self) -> None:
        config = AppConfig(axis="2", labels=("a", "b"), archive_conditions=self.conditions)
        self.store = Store(f"sqlite:///{self.folder / 'store.sqlite'}")
        self.loop = Loop(self.store, config)
        self.archive = Archive(self.url, pauses=())
        self.images = ArchiveImages(self.archive, self.folder / "archive", self.loop, self.limit)
        self.datastore = ArchiveDatastore(self.images, self.folder, self.loop)

    def close(self) -> None:
        self.archive.close()
        self.store.close()

    def volumes(self) -> set[str]:
        return {path.name.removesuffix(".nii.gz") for path in self.images.folder.glob("*/*.nii.gz")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    opened: list[Place] = []

    def make(archive: Any, **settings: Any) -> Place:
        folder = tmp_path / f"place{len(opened)}"
        folder.mkdir()
        opened.append(Place(folder, archive if isinstance(archive, str) else archive.url, **settings))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_the_pool_is_there_before_anything_is_fetched(
    archive: Any, tmp_path: Path, place: Callable[..., Place]
) -> None:
    image_id = fill(archive, tmp_path, "early")
    here = place(archive, conditions="PatientID=early")
    here.datastore.refresh()
    image = here.loop.catalogue.image(image_id)
    assert (image["patient"], image["n_slices"], image["axis"], image["shape"]) == ("early", 5, 2, None)
    assert len(here.loop.catalogue.build_pool()) == 5
    assert not here.volumes()
    path = here.datastore.image_path(image_id)
    assert np.array_equal(read_volume(path).array, np.arange(240, dtype=np.int16).reshape(8, 6, 5))
    assert np.allclose(read_volume(path).affine, AFFINE)
    assert here.loop.catalogue.image(image_id)["shape"] == [8, 6, 5]
    geometry = here.images.geometry(image_id)
    assert geometry.sop_uids == tuple(uid("early", "study", "series", "instance", k) for k in range(5))
    here.datastore.refresh()
    assert here.loop.catalogue.image(image_id)["shape"] == [8, 6, 5], "a known, unchanged series stays verified"
    with pytest.raises(Forbidden):
        here.datastore.add_image("1.2.3", str(path), {})


def test_a_series_is_fetched_once_whoever_wants_it(archive: Any, tmp_path: Path, place: Callable[..., Place]) -> None:
    image_id = fill(archive, tmp_path, "once")
    here = place(archive, conditions="PatientID=once")
    here.datastore.refresh()
    fetched: list[str] = []
    original = here.archive.fetch

    def counted(study: str, series: str, folder: Path, **how: Any) -> list[Path]:
        fetched.append(series)
        return original(study, series, folder, **how)

    here.archive.fetch = counted  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(here.images.fetch, [image_id] * 16))
    assert len(paths) == 1
    assert fetched == [image_id]


def test_the_cache_keeps_its_limit_and_what_is_annotated(
    archive: Any, tmp_path: Path, place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (64, 64, 6)).astype(np.int16)
    ids = [fill(archive, tmp_path, f"cache{k}", noise + k) for k in range(4)]
    here = place(archive, conditions="PatientID=cache*", limit=100_000)
    here.datastore.refresh()
    here.images._clock = lambda: time.time() + 3600
    monkeypatch.setattr(here.loop, "leased_images", lambda: {ids[0]})
    for image_id in ids:
        here.images.fetch(image_id)
    assert here.volumes() == {ids[0], ids[3]}, "the leased one, and the newest"
    assert np.array_equal(read_volume(here.images.fetch(ids[1])).array, noise + 1), "what went is fetched again"


def test_a_growing_series_is_fetched_anew(archive: Any, tmp_path: Path, place: Callable[..., Place]) -> None:
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    files = write_series(tmp_path / "growing", array, AFFINE, Study("growing"))
    for file in files[:3]:
        archive.upload(file)
    here = place(archive, conditions="PatientID=growing")
    here.datastore.refresh()
    assert read_volume(here.images.fetch(series_uid("growing"))).array.shape == (8, 6, 3)
    for file in files[3:]:
        archive.upload(file)
    here.datastore.refresh()
    assert np.array_equal(read_volume(here.images.fetch(series_uid("growing"))).array, array)


def test_an_annotated_series_that_grows_is_kept_but_not_asked_again(
    archive: Any, tmp_path: Path, place: Callable[..., Place]
) -> None:
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    files = write_series(tmp_path / "late", array, AFFINE, Study("late"))
    for file in files[:3]:
        archive.upload(file)
    here = place(archive, conditions="PatientID=late")
    here.datastore.refresh()
    image_id = series_uid("late")
    write_volume(tmp_path / "mask.nii.gz", np.ones((8, 6, 3), np.uint8), AFFINE)
    here.datastore.submit(image_id, tmp_path / "mask.nii.gz", slices=[1])
    for file in files[3:]:
        archive.upload(file)
    here.datastore.refresh()
    with pytest.raises(Conflict, match="after slices were annotated"):
        here.datastore.readable_path(image_id)
    assert here.loop.submitted.labeled_slices(image_id) == {1: 1}


def test_an_annotated_series_that_was_gone_comes_back_as_it_was(
    own_archive: Any, tmp_path: Path, place: Callable[..., Place]
) -> None:
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    image_id = fill(own_archive, tmp_path, "gone", array)
    here = place(own_archive, conditions="PatientID=gone")
    here.datastore.refresh()
    write_volume(tmp_path / "mask.nii.gz", np.ones((8, 6, 5), np.uint8), AFFINE)
    here.datastore.submit(image_id, tmp_path / "mask.nii.gz", slices=[1])

    def back_in_parts() -> None:
        for series in httpx.get(f"{own_archive.root}/series").json():
            httpx.delete(f"{own_archive.root}/series/{series}").raise_for_status()
        here.datastore.refresh()
        assert here.loop.catalogue.counts()["images"] == 0
        files = sorted((tmp_path / "gone").glob("*.dcm"))
        for part in (files[:2], files[2:]):
            for file in part:
                own_archive.upload(file)
            here.datastore.refresh()

    for cached in (True, False):
        back_in_parts()
        if not cached:
            here.images.fetch(image_id).unlink()
        assert here.loop.catalogue.image(image_id)["error"] is None
        assert np.array_equal(read_volume(here.datastore.image_path(image_id)).array, array)
        assert here.loop.submitted.labeled_slices(image_id) == {1: 1}
    # As many instances, but others.
    back_in_parts()
    write_series(tmp_path / "gone", array, AFFINE @ np.diag([2, 1, 1, 1]), Study("gone"))
    here.images.fetch(image_id).unlink()
    back_in_parts()
    with pytest.raises(Conflict, match="after slices were annotated"):
        here.datastore.image_path(image_id)


def spoil(files: list[Path], change: Callable[[pydicom.Dataset], None], which: slice = slice(2, 3)) -> None:
    for file in files[which]:
        instance = pydicom.dcmread(file)
        change(instance)
        instance.save_as(file)


def no_pixels(instance: pydicom.Dataset) -> None:
    instance.Rows = instance.Columns = 65535
    del instance.PixelData


def private_syntax(instance: pydicom.Dataset) -> None:
    instance.file_meta.TransferSyntaxUID = "1.2.826.0.1.3680043.9.9999.1"


def turn(instance: pydicom.Dataset) -> None:
    angle = 0.1 * int(instance.InstanceNumber)
    instance.ImageOrientationPatient = [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]


HOSTILE: dict[str, tuple[Callable[[pydicom.Dataset], Any], slice, str]] = {
    "length": (lambda i: setattr(i, "PixelData", i.PixelData[:-20]), slice(2, 3), "bytes of pixels"),
    "nopixels": (no_pixels, slice(2, 3), "65535"),
    "nogeometry": (lambda i: delattr(i, "ImagePositionPatient"), slice(2, 3), "ImagePositionPatient"),
    "fiveways": (turn, slice(0, 5), "5 different orientations"),
    "private": (private_syntax, slice(0, 5), "private transfer syntax"),
    "oneplace": (lambda i: setattr(i, "ImagePositionPatient", [0, 0, 0]), slice(0, 5), "same position"),
}  # fmt: skip


def test_hostile_series_are_refused_by_name_and_the_server_goes_on(
    archive: Any, tmp_path: Path, serve: Callable[..., Any], live_server: Any
) -> None:
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    for name, (change, which, _) in HOSTILE.items():
        files = write_series(tmp_path / name, array, AFFINE, Study(f"hostile-{name}"))
        spoil(files, change, which)
        archive.upload(tmp_path / name)
    files = write_series(tmp_path / "gap", array, AFFINE, Study("hostile-gap"))
    for file in (*files[:2], *files[3:]):
        archive.upload(file)
    good = fill(archive, tmp_path, "hostile-not")
    server = serve(tmp_path, archive.url, archive_conditions="PatientID=hostile*", labels="a", retrain="false")
    with server.client() as http:
        assert http.get("/al/progress").json()["counts"]["images"] == len(HOSTILE) + 2
        expected = {name: sentence for name, (_, _, sentence) in HOSTILE.items()} | {"gap": "gap"}
        for name, sentence in expected.items():
            answer = http.get("/datastore/image", params={"image": series_uid(f"hostile-{name}")})
            assert answer.status_code == 409, f"{name} was taken"
            assert sentence in answer.json()["detail"]
        assert http.get("/datastore/image", params={"image": good}).status_code == 200
        counts = http.get("/al/progress").json()["counts"]
        assert (counts["images"], counts["unreadable_images"]) == (1, len(expected))
        sample = http.post("/activelearning/random", json={"client_id": "ann"}).json()
        assert sample["id"] == good


class Flaky(httpx.HTTPTransport):
    """The way to an archive; while `how` is set, series are not given, and searches are answered as ever."""

    how: str = ""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.how or "/series/" not in request.url.path:
            return super().handle_request(request)
        if self.how == "lost":
            raise httpx.ReadError("the connection is gone", request=request)
        if self.how == "cut off":
            answer = super().handle_request(request)
            kept = answer.read()[:-200]
            return httpx.Response(200, headers={"Content-Type": answer.headers["Content-Type"]}, content=kept)
        return httpx.Response(int(self.how))


@pytest.mark.parametrize("how", ["500", "503", "404", "cut off"])
def test_a_series_that_is_not_given_once_comes_back_into_the_pool(
    archive: Any, tmp_path: Path, place: Callable[..., Place], how: str
) -> None:
    patient = f"flaky-{how.replace(' ', '-')}"
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    image_id = fill(archive, tmp_path, patient, array)
    here = place(archive, conditions=f"PatientID={patient}")
    way = Flaky()
    here.archive._http = httpx.Client(transport=way)
    now = [1000.0]
    here.datastore._clock = lambda: now[0]

    def held() -> bool:
        here.datastore.refresh()
        return bool(here.loop.catalogue.build_pool().held.all())

    assert not held()
    for pause in (60, 120, 240):
        way.how = how
        with pytest.raises(Conflict, match="asked for again later"):
            here.datastore.image_path(image_id)
        assert held()
        way.how = ""
        now[0] += pause - 1
        assert held(), "not too soon"
        with pytest.raises(Conflict):
            here.datastore.image_path(image_id)
        now[0] += 1
        assert not held()
    assert np.array_equal(read_volume(here.datastore.image_path(image_id)).array, array)
    # Annotated, and gone from the cache: its labels stay, and who tells of it need not wait.
    write_volume(tmp_path / "mask.nii.gz", np.ones((8, 6, 5), np.uint8), AFFINE)
    here.datastore.submit(image_id, tmp_path / "mask.nii.gz", slices=[1])
    here.images.fetch(image_id).unlink()
    way.how = how
    with pytest.raises(Conflict):
        here.datastore.image_path(image_id)
    way.how = ""
    assert here.datastore.look_for("", image_id) == [image_id]
    assert np.array_equal(read_volume(here.datastore.image_path(image_id)).array, array)
    assert here.loop.submitted.labeled_slices(image_id) == {1: 1}


def test_a_series_whose_fetch_is_lost_stays_in_the_pool(
    archive: Any, tmp_path: Path, place: Callable[..., Place]
) -> None:
    image_id = fill(archive, tmp_path, "flaky-lost")
    here = place(archive, conditions="PatientID=flaky-lost")
    way = Flaky()
    here.archive._http = httpx.Client(transport=way)
    here.datastore.refresh()
    way.how = "lost"
    with pytest.raises(Unavailable, match="the connection is gone"):
        here.datastore.image_path(image_id)
    assert not here.loop.catalogue.build_pool().held.any()
    way.how = ""
    assert read_volume(here.datastore.image_path(image_id)).array.shape == (8, 6, 5)


def test_what_cannot_be_used_is_not_asked_for_again(archive: Any, tmp_path: Path, place: Callable[..., Place]) -> None:
    array = np.arange(240, dtype=np.int16).reshape(8, 6, 5)
    files = write_series(tmp_path / "unusable", array, AFFINE, Study("unusable"))
    for file in (*files[:2], *files[3:]):
        archive.upload(file)
    here = place(archive, conditions="PatientID=unusable")
    here.datastore.refresh()
    with pytest.raises(Conflict, match="gap"):
        here.datastore.image_path(series_uid("unusable"))
    here.datastore._clock = lambda: time.time() + 1e6
    here.datastore.refresh()
    here.datastore.look_for("", series_uid("unusable"))
    assert here.loop.catalogue.build_pool().held.all()


def test_ten_thousand_series_are_a_pool_without_a_fetch(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place("http://127.0.0.1:9/nobody")
    listed = [
        ListedSeries(f"1.2.{k // 2}", f"1.3.{k}", f"P{k // 4}", 20 + k % 5, {"Modality": "MR"}) for k in range(10_000)
    ]
    monkeypatch.setattr(here.archive, "series", lambda modalities, conditions: iter(listed))
    here.datastore.refresh()
    pool = here.loop.catalogue.build_pool()
    assert len(pool) == sum(series.instances for series in listed)
    assert len(np.unique(pool.patient)) == 2500
    assert not here.volumes()
    monkeypatch.undo()
    with pytest.raises(Unavailable):
        here.datastore.image_path("1.3.77")
    assert here.loop.catalogue.image("1.3.77")["error"] is None, "an archive that is down condemns no series"


def test_looking_neither_waits_nor_raises_while_the_archive_is_down(place: Callable[..., Place]) -> None:
    here = place("http://127.0.0.1:9/nobody")
    here.datastore.look()
    source = here.datastore.source()
    assert not source["ok"]
    assert "cannot be reached" in source["trouble"]
    with pytest.raises(Unavailable):
        here.datastore.refresh()


def test_conditions_are_written_as_in_an_address() -> None:
    assert parse_conditions("") == []
    assert parse_conditions("StudyDate=20240101-&PatientID=A%26B") == [("StudyDate", "20240101-"), ("PatientID", "A&B")]
    for wrong in ("StudyDate", "limit=3", "Modality=CT"):
        with pytest.raises(BadInput):
            parse_conditions(wrong)


def masks_of(truth: Path) -> dict[str, Path]:
    return {series_uid(file.name.removesuffix(".nii.gz")): file for file in sorted(truth.glob("*.nii.gz"))}


def annotate(server: Any, truth: dict[str, Path], folder: Path, tickets: int) -> list[str]:
    """Ask, look at the image, send the truth of the asked slices; the images that were asked for."""
    asked = []
    with server.client() as http:
        for _ in range(tickets):
            sample = http.post("/activelearning/spread", json={"client_id": "ann"}).json()
            assert sample["name"] == f"{sample['id']}.nii.gz"
            image = http.get("/datastore/image", params={"image": sample["id"]})
            assert image.status_code == 200, image.text
            (folder / sample["name"]).write_bytes(image.content)
            seen = read_volume(folder / sample["name"])
            known = read_volume(truth[sample["id"]].parent.parent / "images" / truth[sample["id"]].name)
            assert np.array_equal(seen.array, known.array)
            assert np.allclose(seen.affine, known.affine, atol=1e-4)
            with open(truth[sample["id"]], "rb") as label:
                answer = http.put(
                    "/datastore/label", params={"image": sample["id"]}, files={"label": ("label.nii.gz", label)},
                    data={"params": json.dumps({"client_id": "ann"})},
                )  # fmt: skip
            assert answer.status_code == 200, answer.text
            assert answer.json()["slices"] == sample["ask"]["slices"]
            asked.append(sample["id"])
    return asked


@pytest.fixture
def phantoms(own_archive: Any, tmp_path: Path) -> dict[str, Path]:
    """Four phantom patients in an archive of the test's own: {id: the truth's file}."""
    write_phantoms(tmp_path / "demo", patients=4, seed=1, shape=SMALL)
    for file in sorted((tmp_path / "demo" / "images").glob("*.nii.gz")):
        patient, volume = file.name.removesuffix(".nii.gz"), read_volume(file)
        write_series(tmp_path / "dicom" / patient, volume.array, volume.affine, Study(patient))
        own_archive.upload(tmp_path / "dicom" / patient)
    return masks_of(tmp_path / "demo" / "labels")


def test_the_loop_runs_on_an_archive_that_is_killed_in_between(
    own_archive: Any, phantoms: dict[str, Path], tmp_path: Path, serve: Callable[..., Any], shared_data: Path
) -> None:
    own_archive.upload(shared_data / "dicom" / "Study1")
    settings = {
        "labels": LABELS,
        "budget": "4",
        "slices_per_ticket": "1",
        "strategy": "max_entropy",
        "rescan_seconds": "1",
    }
    server = serve(tmp_path, own_archive.url, archive_conditions="PatientID=patient*", **settings)
    state = tmp_path / "state"
    with server.client() as http:
        sample = http.post("/activelearning/spread", json={"client_id": "first"}).json()
        study = uid(sample["ask"]["patient"], "study")
        assert sample["PatientID"].startswith(f"{sample['ask']['patient']}: slice")
        facts = {
            key: sample[key] for key in ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "StudyDate", "StudyTime")
        }
        assert facts == {
            "StudyInstanceUID": study, "SeriesInstanceUID": sample["id"], "Modality": "MR", "StudyDate": "20240115",
            "StudyTime": "101500",
        }  # fmt: skip
        assert sample["RetrieveURL"] == f"/al/tickets/{sample['ask']['ticket']}/ohif"

        # Nothing was fetched yet: what needs the voxels says that the archive is down, and works when it is back.
        own_archive.stop()
        answer = http.get("/datastore/image", params={"image": sample["id"]})
        assert (answer.status_code, "cannot be reached" in answer.json()["detail"]) == (503, True)
        progress = server.wait_for("the trouble to be seen", lambda p: not p["source"]["ok"], 60)
        assert "cannot be reached" in progress["source"]["trouble"]
        assert http.get("/al/health").json()["source"]["ok"] is False
        own_archive.start()
        server.wait_for("the archive to be back", lambda p: p["source"]["ok"], 60)
        assert http.post(f"/al/tickets/{sample['ask']['ticket']}/release").status_code == 200

    asked = annotate(server, phantoms, tmp_path, 2)
    # The rest of the first round, with the archive gone in the middle of it: the labels are kept, the job waits.
    own_archive.stop()
    with server.client() as http:
        before = http.get("/al/progress").json()["counts"]
        with open(phantoms[asked[0]], "rb") as label:
            answer = http.put(
                "/datastore/label", params={"image": asked[0]}, files={"label": ("label.nii.gz", label)},
                data={"params": json.dumps({"client_id": "other", "annotated_slices": [0]})},
            )  # fmt: skip
        assert answer.status_code == 200, "a label for a volume that is known needs no archive"
        assert http.get("/al/progress").json()["counts"]["labeled_slices"] == before["labeled_slices"] + 1
        assert http.post("/train/unet2d").status_code == 200
    own_archive.start()
    server.wait_for("a model", lambda p: p["model"])
    server.wait_for("a round with it", lambda p: any(row["selected_by"] == "max_entropy" for row in p["rounds"]))
    with server.client() as http:
        sample = http.post("/activelearning/max_entropy", json={"client_id": "ann"}).json()
        assert sample["ask"]["selected_by"] == "max_entropy"
        answer = http.post("/infer/unet2d", params={"image": sample["id"], "output": "image"})
        assert answer.status_code == 200
        counts = http.get("/al/progress").json()["counts"]
        assert (counts["images"], counts["patients"], counts["unreadable_images"]) == (4, 4, 0)
    assert len(fetched(state)) == 4

    # New series, and the archive gone while a sweep fetches them: the sweep waits, and chooses among all when it is back.
    for number in range(MORE):
        fill(own_archive, tmp_path / "more", f"patient1{number:02d}")
    server.wait_for("the new series", lambda p: p["counts"]["images"] == 4 + MORE, 60)
    with server.client() as http:
        assert http.post("/scoring/max_entropy").status_code == 200
        wait_until(lambda: len(fetched(state)) > 4, "the sweep to fetch")
        own_archive.stop()
        assert len(fetched(state)) < 4 + MORE, "it was too late to be in the middle"
        assert http.get("/scoring/").json()["status"] == "RUNNING"
        own_archive.start()
        wait_until(lambda: http.get("/scoring/").json()["status"] == "DONE", "the sweep to end")
        newest = max(http.get("/al/rounds").json(), key=lambda row: row["id"])
        assert (newest["selected_by"], newest["state"]) == ("max_entropy", "open")
        counts = http.get("/al/progress").json()["counts"]
        assert (counts["images"], counts["unreadable_images"]) == (4 + MORE, 0)
    assert len(fetched(state)) == 4 + MORE


def fetched(state: Path) -> set[str]:
    """Ids of the series whose volumes are here."""
    return {path.name.removesuffix(".nii.gz") for path in (state / "archive").glob("*/*.nii.gz")}


def wait_until(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)


def test_a_server_starts_while_the_archive_is_down(own_archive: Any, tmp_path: Path, serve: Callable[..., Any]) -> None:
    image_id = fill(own_archive, tmp_path, "P1")
    own_archive.stop()
    server = serve(tmp_path, own_archive.url, labels="a", rescan_seconds="1")
    with server.client() as http:
        assert "cannot be reached" in http.get("/al/progress").json()["source"]["trouble"]
        assert http.post("/activelearning/random", json={}).json() == {}
        assert "cannot be reached" in http.post("/al/ask", json={}).json()["reason"]
    own_archive.start()
    server.wait_for("the image", lambda p: p["counts"]["images"] == 1, 60)
    with server.client() as http:
        assert http.get("/datastore/image", params={"image": image_id}).status_code == 200
