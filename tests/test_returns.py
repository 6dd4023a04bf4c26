"""Labels that come back by a real archive, step by step, with the archive and the server dying between any two steps."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from bench.dicom_phantom import Study, uid, write_series
from bench.seg_phantom import highdicom_seg, ohif_seg
from datastore.archive import ArchiveDatastore
from datastore.returns import Returns
from datastore.rules import FINAL, ORIGINAL
from datastore.seg_export import Form, composite_seg, start_seg, store_seg
from datastore.volume_io import read_volume, write_volume
from dicom.archive import Archive
from dicom.images import ArchiveImages
from dicom.seg_search import OrthancFeed
from loop import events
from loop.config import AppConfig
from loop.errors import NotFound, Unavailable
from loop.returned import Noticed
from loop.rounds import Loop, Swept
from loop.store import Store

SHAPE = (11, 7, 6)
AFFINE = np.diag([-1.0, -1.2, 3.0, 1.0])
LABELS = ("organ", "lesion")


class NoFeed(OrthancFeed):
    """As of an archive that is no Orthanc."""

    def last(self) -> int | None:
        return None


@dataclass
class Place:
    """A campaign on an archive; `restart` is a server that was killed and started again."""

    folder: Path
    archive: Any
    patient: str
    feed: type[OrthancFeed] = OrthancFeed
    files: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.open()

    def open(self) -> None:
        config = AppConfig(
            axis="2", labels=LABELS, archive_conditions=f"PatientID={self.patient}*", slices_per_ticket=2
        )
        self.store = Store(f"sqlite:///{self.folder / 'store.sqlite'}")
        self.loop = Loop(self.store, config)
        self.client = Archive(self.archive.url, pauses=())
        images = ArchiveImages(self.client, self.folder / "archive", self.loop, 1 << 30)
        self.datastore = ArchiveDatastore(images, self.folder, self.loop)
        self.told: list[int] = []
        self.returns = Returns(self.datastore, self.feed(self.archive.url), 1.0, lambda: self.told.append(1))

    def close(self) -> None:
        self.returns.close()
        self.client.close()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self.open()

    def series(self, name: str = "") -> str:
        """Another series in the archive, and here."""
        patient = self.patient + name
        array = np.random.default_rng(len(self.files)).integers(0, 99, SHAPE).astype(np.int16)
        files = write_series(self.folder / f"dicom{name}", array, AFFINE, Study(patient))
        self.archive.upload(self.folder / f"dicom{name}")
        self.datastore.refresh()
        image = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
        self.files[image] = files
        return image

    def ask(self, annotator: str = "ann") -> Any:
        if not self.loop.rounds():
            self.loop.plan("random", lambda pool, needs: Swept({}, np.zeros(len(pool), bool)), model=None, budget=6)
        return self.loop.ask("random", annotator)[0]

    def stow(self, content: bytes) -> str:
        """Store as a workstation does, straight into the archive; the SOP instance UID."""
        self.client.store(str(pydicom.dcmread(io.BytesIO(content)).StudyInstanceUID), content)
        return str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["sop_uid"]: row for row in self.loop.returned.listed(limit=1000)}

    def sent(self, image: str) -> list[dict[str, Any]]:
        return [row for row in self.loop.submitted.submissions(image) if row["tag"] == FINAL]

    def composite(self, image: str) -> npt.NDArray[Any]:
        return read_volume(self.datastore.label_file(image, FINAL)).array


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Place]]:
    opened: list[Place] = []

    def make(archive: Any, **how: Any) -> Place:
        name = f"returns{uid(request.node.name, len(opened))[-12:]}-"
        opened.append(Place(tmp_path / f"place{len(opened)}", archive, name, **how))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def box(*slices: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:8, 2:5, slices] = 1
    mask[4:6, 3, slices] = 2
    return mask


@pytest.mark.parametrize("feed", [OrthancFeed, NoFeed])
def test_full_sparse_and_empty_come_back_equal_and_once(
    archive: Any, place: Callable[..., Place], feed: type[OrthancFeed]
) -> None:
    here = place(archive, feed=feed)
    image = here.series()
    here.stow(ohif_seg(here.files[image], box(0), LABELS, f"before {here.patient}"))
    here.returns.look()
    assert here.rows() == {}, "what was there before the campaign answers nothing"
    assert here.returns.status()["how"] == ("changes" if feed is OrthancFeed else "search")

    ticket = here.ask()
    sparse = box(ticket.slices[0])
    sop = here.stow(ohif_seg(here.files[image], sparse, LABELS, f"sparse {here.patient}", creator="Reader1"))
    here.returns.look()
    assert here.rows()[sop]["state"] == "recorded"
    (sent,) = here.sent(image)
    assert (sent["annotator"], sent["ticket"], sent["slices"]) == ("ann", ticket.id, ticket.slices)
    assert np.array_equal(here.composite(image), sparse)
    assert here.loop.ticket(ticket.id).state == "submitted"
    here.datastore.settle()
    kept = pydicom.dcmread(here.folder / sent["file"])
    assert kept.SOPInstanceUID == sop, "kept as it was sent"

    ticket = here.ask()
    full = box(*range(6))
    here.stow(highdicom_seg(here.files[image], full, LABELS, creator="ANN^"))
    here.returns.look()
    assert here.sent(image)[-1]["slices"] == sorted({*range(6)} - set(np.flatnonzero(sparse.any(axis=(0, 1)))))
    assert np.array_equal(here.composite(image), full)

    empty = np.zeros(SHAPE, np.uint8)
    here.stow(ohif_seg(here.files[image], empty, LABELS, f"empty {here.patient}", slices=range(6)))
    here.returns.look()
    assert here.sent(image)[-1]["slices"] == [*range(6)]
    assert not here.composite(image).any()
    for _ in range(2):
        here.returns.look()
        here.restart()
    here.returns.look()
    assert len(here.sent(image)) == 3
    assert len(here.rows()) == 3
    assert {row["submission"] for row in here.rows().values()} == {row["id"] for row in here.sent(image)}


@pytest.mark.parametrize("feed", [OrthancFeed, NoFeed])
def test_an_archive_that_dies_at_each_step_loses_nothing(
    own_archive: Any, place: Callable[..., Place], feed: type[OrthancFeed]
) -> None:
    here = place(own_archive, feed=feed)
    image = here.series()
    here.returns.look()
    ticket = here.ask()
    sop = here.stow(ohif_seg(here.files[image], box(ticket.slices[0]), LABELS, "one"))

    # Stored, and gone before it is noticed; a server that starts meanwhile waits.
    own_archive.stop()
    for _ in range(2):
        with pytest.raises(Unavailable):
            here.returns.look()
        assert "cannot be reached" in str(here.returns.status()["trouble"])
        here.restart()
    assert here.rows() == {}
    own_archive.start()

    # Noticed, and gone before it is fetched.
    here.returns._notice()
    own_archive.stop()
    with pytest.raises(Unavailable):
        here.returns.look()
    assert here.rows()[sop]["state"] == "noticed"
    assert here.sent(image) == []
    here.restart()  # and the server too
    with pytest.raises(Unavailable):
        here.returns.look()
    own_archive.start()
    here.returns.look()
    assert here.rows()[sop]["state"] == "recorded"

    # Fetched, and gone before it is recorded: the volume is here, so the archive is not needed any more.
    ticket = here.ask()
    here.stow(ohif_seg(here.files[image], box(ticket.slices[0]), LABELS, "two"))
    submit = here.datastore.submit

    def submit_without_archive(*args: Any, **how: Any) -> dict[str, Any]:
        own_archive.stop()
        return submit(*args, **how)

    here.datastore.submit = submit_without_archive  # type: ignore[method-assign]
    here.returns.look()
    assert len(here.sent(image)) == 2
    own_archive.start()
    here.restart()
    here.returns.look()
    assert len(here.sent(image)) == 2


def test_a_server_that_dies_before_or_after_its_commit_records_once(
    archive: Any, place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place(archive)
    image = here.series()
    here.returns.look()
    here.ask()
    sop = here.stow(ohif_seg(here.files[image], box(1, 2), LABELS, f"dies {here.patient}"))

    class Killed(BaseException):
        pass

    tell = Loop.tell

    def before(loop: Loop, *args: Any) -> int:
        raise Killed

    def after(loop: Loop, *args: Any) -> int:
        tell(loop, *args)
        raise Killed

    for dying, recorded in ((before, 0), (after, 1)):
        monkeypatch.setattr(Loop, "tell", dying)
        with pytest.raises(Killed):
            here.returns.look()
        here.restart()
        assert len(here.sent(image)) == recorded
    monkeypatch.undo()
    here.returns.look()
    assert len(here.sent(image)) == 1
    assert here.rows()[sop]["state"] == "recorded"


def test_what_is_no_answer_is_refused_by_name_and_the_next_is_taken(archive: Any, place: Callable[..., Place]) -> None:
    here = place(archive)
    image, other = here.series("a"), here.series("b")
    unknown = write_series(here.folder / "u", np.zeros(SHAPE, np.int16), AFFINE, Study(f"{here.patient}a", series="u"))
    foreign = write_series(here.folder / "f", np.zeros(SHAPE, np.int16), AFFINE, Study("somebody else"))
    archive.upload(here.folder / "u")
    here.returns.look()

    frame = pydicom.dcmread(here.files[other][0]).FrameOfReferenceUID

    def changed(name: str, **elements: object) -> bytes:
        seg = pydicom.dcmread(io.BytesIO(ohif_seg(here.files[image], box(1), LABELS, f"{name} {here.patient}")))
        for keyword, value in elements.items():
            setattr(seg, keyword, value)
        out = io.BytesIO()
        seg.save_as(out)
        return out.getvalue()

    wrong = {
        changed("frame of reference", FrameOfReferenceUID="1.2.3"): "frame of reference",
        changed("size", Rows=9, Columns=9): "got 9 and 9",
        changed("kind", SegmentationType="FRACTIONAL"): "FRACTIONAL",
        ohif_seg(here.files[image], box(1), ("liver", "x"), f"names {here.patient}"): "organ, lesion",
        highdicom_seg(here.files[image], box(1), LABELS, algorithm="some AI"): "AUTOMATIC",
        # Of the images of one series, under the name of another.
        changed("series", ReferencedSeriesSequence=_of_series(other), FrameOfReferenceUID=frame): "not in this series",
        ohif_seg(unknown, box(1), LABELS, f"no image {here.patient}"): "none of the images here",
    }  # fmt: skip
    uids = {here.stow(content): reason for content, reason in wrong.items()}
    elsewhere = here.stow(ohif_seg(foreign, box(1), LABELS, f"foreign {here.patient}"))
    taken = here.stow(ohif_seg(here.files[image], box(2), LABELS, f"good {here.patient}"))
    here.returns.look()
    rows = here.rows()
    for sop, reason in uids.items():
        assert rows[sop]["state"] in ("refused", "elsewhere"), (reason, rows[sop])
        assert reason in rows[sop]["reason"]
    assert elsewhere not in rows, "another study is nobody's business here"
    assert rows[taken]["state"] == "recorded"
    assert here.sent(other) == []
    assert [row["slices"] for row in here.sent(image)] == [[2]], "nobody asked: what is painted"
    told = [event for event in events.since(here.store, 0, 1000) if event["kind"] == "label_refused"]
    assert {event["data"]["instance"] for event in told} == set(uids)
    # Not tried for ever, unless somebody says so.
    here.restart()
    here.returns.look()
    assert len([event for event in events.since(here.store, 0, 1000) if event["kind"] == "label_refused"]) == len(told)
    here.loop.returned.again(next(iter(uids)))
    here.returns.look()
    assert here.rows()[next(iter(uids))]["state"] == "refused"


def _of_series(series: str) -> list[pydicom.Dataset]:
    item = pydicom.Dataset()
    item.SeriesInstanceUID = series
    return [item]


def test_a_seg_that_is_here_before_its_series_is_listed_waits_for_it(archive: Any, place: Callable[..., Place]) -> None:
    here = place(archive)
    here.returns.look()
    files = write_series(here.folder / "late", np.zeros(SHAPE, np.int16), AFFINE, Study(f"{here.patient}late"))
    archive.upload(here.folder / "late")
    sop = here.stow(ohif_seg(files, box(1), LABELS, f"early {here.patient}"))
    here.returns.look()
    assert here.loop.returned.get(sop)["state"] == "elsewhere"
    here.restart()
    here.datastore.refresh()
    here.returns.look()
    assert here.rows()[sop]["state"] == "recorded"


def test_whose_it_is(archive: Any, place: Callable[..., Place]) -> None:
    """By the ticket it was stored for; by the name in it; by the only ticket there is; else by its name alone."""
    here = place(archive)
    image = here.series()
    here.returns.look()
    jane, bob = here.ask("Jane Doe"), here.ask("bob")
    files = here.files[image]

    def back(name: str, creator: str, hint: str | None = None) -> dict[str, Any]:
        content = ohif_seg(files, box(*bob.slices[:1]), LABELS, f"{name} {here.patient}", creator=creator)
        if hint:
            with here.returns.storing():
                sop = here.stow(content)
                here.returns.look()
                assert here.rows()[sop]["state"] == "noticed", "who stores it will say whose it is"
                here.returns.stored([sop], "", hint)
        else:
            here.stow(content)
        here.returns.look()
        return here.sent(image)[-1]

    nobody = back("nobody", "Reader1")
    assert (nobody["annotator"], nobody["ticket"], nobody["slices"]) == ("Reader1", None, bob.slices[:1])
    hinted = back("hinted", "Reader1", bob.id)
    assert (hinted["annotator"], hinted["ticket"], hinted["slices"]) == ("bob", bob.id, bob.slices)
    named = back("named", "Doe^Jane")
    assert (named["annotator"], named["ticket"]) == ("Jane Doe", jane.id)
    assert here.loop.ticket(jane.id).state == "submitted"


def test_what_we_stored_ourselves_and_what_was_sent_directly_is_no_new_label(
    archive: Any, place: Callable[..., Place], tmp_path: Path
) -> None:
    here = place(archive)
    image = here.series()
    here.returns.look()
    ticket = here.ask()
    content = ohif_seg(here.files[image], box(ticket.slices[0]), LABELS, f"both {here.patient}")
    (tmp_path / "sent.dcm").write_bytes(content)
    kept = here.datastore.submit(image, tmp_path / "sent.dcm", annotator="ann")
    sop = here.stow(content)
    written = start_seg(here.datastore, image, None)
    assert written is not None
    here.returns.look()
    assert (here.rows()[sop]["state"], here.rows()[sop]["submission"]) == ("recorded", kept["submission"])
    assert here.loop.returned.get(written.sop_uid)["state"] == "ours"
    assert len(here.sent(image)) == 1


def test_a_start_mask_gives_way_to_the_next_one(
    archive: Any, place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place(archive)
    image = here.series()
    here.returns.look()

    def annotate(index: int) -> None:
        write_volume(here.folder / "mask.nii.gz", box(index), AFFINE)
        here.datastore.submit(image, here.folder / "mask.nii.gz", annotator="ann", slices=[index])

    def begin() -> str:
        written = start_seg(here.datastore, image, None, here.returns.delete)
        assert written is not None
        return written.sop_uid

    def there(sop_uid: str) -> bool:
        return bool(httpx.post(f"{archive.root}/tools/lookup", content=sop_uid).json())

    annotate(0)
    first = begin()
    kept = composite_seg(here.datastore, image, ORIGINAL, Form("labelmap", "all"))
    store_seg(here.datastore, image, kept)
    annotate(1)
    second = begin()
    assert [there(uid) for uid in (first, second)] == [True, True], "somebody may be opening it"
    monkeypatch.setattr(here.loop.returned, "clock", lambda: time.time() + 3600)
    monkeypatch.setattr(OrthancFeed, "delete", lambda feed, sop_uid: False)
    annotate(2)
    third = begin()
    monkeypatch.undo()
    assert there(first), "an archive that deletes nothing is no trouble"
    monkeypatch.setattr(here.loop.returned, "clock", lambda: time.time() + 7200)
    annotate(3)
    fourth = begin()
    assert [there(uid) for uid in (first, second, third, fourth)] == [False, False, False, True]
    assert there(kept.sop_uid), "what was stored to stay stays"
    here.returns.look()
    assert begin() == fourth
    assert there(fourth)


def test_nothing_but_our_own_is_deleted(archive: Any, place: Callable[..., Place]) -> None:
    here = place(archive)
    image = here.series()
    here.returns.look()
    sop = here.stow(ohif_seg(here.files[image], box(0), LABELS, f"theirs {here.patient}"))
    here.returns.look()
    assert not here.returns.delete(sop)


def test_the_list_comes_in_pages(archive: Any, place: Callable[..., Place]) -> None:
    here = place(archive)
    seen = here.loop.returned
    seen.clock = lambda: 7.0
    seen.notice([Noticed(f"1.2.{k}") for k in range(7)])
    seen.clock = lambda: 8.0
    seen.notice([Noticed(f"1.3.{k}") for k in range(3)])
    seen.notice([Noticed("1.4.1")], state="ours")
    pages, before = list[list[str]](), None
    while True:
        rows = [row["sop_uid"] for row in seen.listed(limit=4, before=before)]
        if not rows:
            break
        pages.append(rows)
        before = rows[-1]
    everything = [f"1.3.{k}" for k in range(3)] + [f"1.2.{k}" for k in range(7)]
    assert pages == [everything[:4], everything[4:8], everything[8:]]
    assert [row["sop_uid"] for row in seen.listed("ours", limit=4)] == ["1.4.1"]
    with pytest.raises(NotFound, match="was seen"):
        seen.listed(before="1.9")


def test_a_start_mask_that_comes_back_unchanged_annotates_only_what_was_asked(
    archive: Any, place: Callable[..., Place], tmp_path: Path
) -> None:
    here = place(archive)
    image = here.series()
    here.returns.look()
    here.loop.published("unet2d", "digest", {})
    predicted = box(*range(6))
    calls: list[int] = []

    def predict() -> tuple[Path, str]:
        calls.append(1)
        write_volume(tmp_path / "mask.nii.gz", predicted, AFFINE)
        return tmp_path / "mask.nii.gz", "digest"

    written = start_seg(here.datastore, image, predict)
    again = start_seg(here.datastore, image, predict)
    assert written is not None
    assert again is not None
    assert (written.sop_uid, len(calls)) == (again.sop_uid, 1)
    found = httpx.get(f"{archive.url}/series", params={"SeriesInstanceUID": written.series_uid}).json()
    assert "unet" in found[0]["0008103E"]["Value"][0]
    ticket = here.ask()
    beside = next(k for k in range(6) if k not in ticket.slices)
    drawn = predicted.copy()
    drawn[5, 4, beside] = 2
    here.stow(ohif_seg(here.files[image], drawn, LABELS, f"edited {here.patient}"))
    here.returns.look()
    (sent,) = here.sent(image)
    assert sent["slices"] == sorted([*ticket.slices, beside])
    # The next one begins with the mask so far, over the prediction.
    third = start_seg(here.datastore, image, predict)
    assert third is not None
    assert third.sop_uid != written.sop_uid
    assert len(calls) == 1
