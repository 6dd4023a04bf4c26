"""The loop over a real store: SQLite always, PostgreSQL where its programs are."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from loop import events
from loop.catalogue import Found
from loop.config import AppConfig
from loop.errors import BadInput, Conflict, Gone, NotFound
from loop.jobs import Jobs
from loop.pool import WHOLE, Pool
from loop.rounds import Loop, Swept
from loop.signals import Signal
from loop.store import Store, leases, unfiled
from loop.submitted import Submission
from loop.tickets import Ticket

MakeLoop = Callable[..., Loop]


class Clock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(store: Store) -> MakeLoop:
    """A loop with `volumes` images of `slices` slices each."""

    def build(volumes: int = 3, slices: int = 10, **settings: Any) -> Loop:
        config = AppConfig(**{"budget": 6, "slices_per_ticket": 2, "cold_start": "spread", **settings})
        loop = Loop(store, config, Clock())
        loop.catalogue.sync([image(n, slices) for n in range(volumes)], [], 0.0)
        return loop

    return build


def image(n: int, slices: int = 10, **changes: Any) -> Found:
    values = {
        "id": f"patient{n:03}",
        "path": f"patient{n:03}.nii.gz",
        "version": "1",
        "shape": (8, 9, slices),
        "spacing": (1.0, 1.0, 3.0),
    }
    return Found(**{**values, **changes})


def no_signals(pool: Pool, needs: tuple[Signal, ...]) -> Swept:
    raise AssertionError("no signal is needed")


def open_round(loop: Loop, strategy: str = "random") -> int:
    number = loop.plan(strategy, no_signals, model=None)
    assert number is not None
    return number


def submit(loop: Loop, ticket: Ticket) -> int:
    return tell(loop, ticket.image_id, ticket.slices, ticket=ticket.id, annotator=ticket.annotator)


def tell(loop: Loop, image_id: str, slices: list[int], **values: Any) -> int:
    submission = {"annotator": "", "digest": "d", "file": "f", "slices": slices, "ticket": None, "params": {}, **values}
    return loop.tell(image_id, Submission(**submission))


def items(tickets: list[Ticket]) -> list[tuple[str, int]]:
    return [(ticket.image_id, index) for ticket in tickets for index in ticket.slices]


# --- images and the pool


def test_pool_has_a_row_for_every_slice(make: MakeLoop) -> None:
    loop = make(volumes=3, slices=4)
    tell(loop, "patient001", [2])
    pool = loop.catalogue.build_pool()
    assert len(pool) == 12
    assert [str(pool.items[row]) for row in (0, 6, 11)] == [
        "patient000 slice 0",
        "patient001 slice 2",
        "patient002 slice 3",
    ]
    assert np.flatnonzero(pool.labeled).tolist() == [6]
    assert len(pool.candidates) == 11
    assert pool.patient.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_pool_of_volumes(make: MakeLoop) -> None:
    loop = make(volumes=3, slices=4, unit="volume")
    tell(loop, "patient001", [0, 1, 2])
    assert loop.catalogue.build_pool().labeled.tolist() == [False, False, False]
    tell(loop, "patient001", [3])
    pool = loop.catalogue.build_pool()
    assert pool.labeled.tolist() == [False, True, False]
    assert (pool.position == WHOLE).all()
    assert pool.items[1].slice is None


def test_unreadable_and_missing_images_are_held_but_keep_their_labels(make: MakeLoop) -> None:
    loop = make(volumes=3, slices=4)
    sent = tell(loop, "patient000", [1])
    loop.catalogue.sync([image(1, 4, version="2", error="broken", shape=None, spacing=None)], ["patient000"], 1.0)
    pool = loop.catalogue.build_pool()
    assert {pool.items[int(row)].image_id for row in pool.candidates} == {"patient002"}
    assert loop.submitted.labeled_slices("patient000") == {1: sent}
    with pytest.raises(NotFound):
        loop.catalogue.image("patient000")
    loop.catalogue.sync([image(0, 4)], [], 2.0)
    assert loop.catalogue.image("patient000")["n_labeled"] == 1


def test_a_ticket_of_an_image_that_is_gone_is_not_given_again(make: MakeLoop) -> None:
    loop = make(volumes=2, slices=3)
    open_round(loop)
    ticket = loop.ask("random", "ann")[0]
    loop.catalogue.sync([], [ticket.image_id], 1.0)
    assert loop.ask("random", "ann")[0].image_id != ticket.image_id
    assert loop.ticket(ticket.id).state == "released"


def test_an_image_that_turns_out_unusable_ends_its_tickets_and_no_round_waits_for_it(make: MakeLoop) -> None:
    loop = make(volumes=2, slices=3)
    number = open_round(loop)
    ticket = loop.ask("random", "ann")[0]
    loop.unusable(ticket.image_id, "no geometry")
    assert loop.ticket(ticket.id).state == "released"
    assert not loop.leased_images()
    other = loop.ask("random", "ann")[0]
    assert other.image_id != ticket.image_id
    tell(loop, other.image_id, [0, 1, 2])
    assert loop.round(number)["state"] == "done"


def test_a_file_that_changes_shape_after_annotation_is_refused_and_says_why(make: MakeLoop) -> None:
    loop = make(slices=4)
    tell(loop, "patient000", [1])
    loop.catalogue.sync([image(0, 7, version="2"), image(1, 7, version="2")], [], 1.0)
    assert "annotated" in loop.catalogue.image("patient000")["error"]
    assert loop.catalogue.image("patient001")["n_slices"] == 7
    assert loop.catalogue.image("patient001")["error"] is None


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 3), 2), ((3, 1, 1), 0), ((1, 2, 1), 1), ((1, 1, 1), 2), ((1.0, 1.001, 1.0), 2)]
)
def test_slice_axis_is_the_coarsest(make: MakeLoop, spacing: tuple[float, ...], axis: int) -> None:
    assert make().config.axis_of(spacing) == axis
    assert make(axis="0").config.axis_of(spacing) == 0


@pytest.mark.parametrize(
    ("image_id", "patient"),
    [("patient007_frame01", "patient007"), ("sub-A1/ses-2/scan", "sub-A1"), ("hippocampus_004", "hippocampus_004")],
)
def test_patient_comes_from_the_id(make: MakeLoop, image_id: str, patient: str) -> None:
    assert make().config.patient_of(image_id) == patient
    assert make(patient_pattern=r"_(\d+)").config.patient_of("hippocampus_004") == "004"


def test_validation_share_is_by_patient_and_stays(make: MakeLoop) -> None:
    loop = make(volumes=0, validation_share=0.25)
    frames = [image(n, id=f"patient{n:03}_frame{f}", path=f"{n}{f}") for n in range(20) for f in (1, 2)]
    loop.catalogue.sync(frames[:10], [], 0.0)
    first = splits(loop)
    loop.catalogue.sync(frames[10:], [], 0.0)
    assert {patient: split for patient, split in splits(loop).items() if patient in first} == first
    assert sum(split == "validation" for split in splits(loop).values()) == 5


def splits(loop: Loop) -> dict[str, str]:
    ids = loop.catalogue.versions()
    found: dict[str, set[str]] = {}
    for image_id in ids:
        row = loop.catalogue.image(image_id)
        found.setdefault(row["patient"], set()).add(row["split"])
    assert all(len(values) == 1 for values in found.values())
    return {patient: values.pop() for patient, values in found.items()}


# --- rounds and tickets


def test_a_round_is_asked_in_its_order_one_image_a_ticket(make: MakeLoop) -> None:
    loop = make()
    number = open_round(loop)
    wanted = [(item["image"], item["slice"]) for item in loop.round(number)["items"]]
    tickets = loop.ask("random", n=100)
    assert sorted(items(tickets)) == sorted(wanted)
    assert tickets[0].image_id == wanted[0][0]
    assert all(len(ticket.items) <= 2 and ticket.strategy == "random" for ticket in tickets)
    assert all(item["why"] and np.isfinite(item["score"]) for ticket in tickets for item in ticket.items)


def test_nobody_gets_what_another_holds(make: MakeLoop) -> None:
    loop = make()
    open_round(loop)
    first, second = loop.ask("random", "a"), loop.ask("random", "b")
    assert not set(items(first)) & set(items(second))
    assert first[0].image_id != second[0].image_id, "images that nobody works on come first"


@pytest.mark.parametrize("annotators", [2, 8])
def test_asking_at_once_never_hands_out_an_item_twice(make: MakeLoop, annotators: int) -> None:
    loop = make(volumes=4, slices=30, budget=60)
    open_round(loop)
    gate = threading.Barrier(annotators)

    def work(name: int) -> list[Ticket]:
        gate.wait()
        return [ticket for _ in range(4) for ticket in loop.ask("random", f"annotator {name}", resume=False)]

    with ThreadPoolExecutor(annotators) as threads:
        given = items([ticket for tickets in threads.map(work, range(annotators)) for ticket in tickets])
    assert len(given) == len(set(given)) > 0


def test_the_store_itself_refuses_a_second_lease(store: Store) -> None:
    row = {"image_id": "a", "slice": 1}
    with store.write() as connection:
        connection.execute(leases.insert().values(**row, ticket="one"))
    with pytest.raises(sa.exc.IntegrityError), store.write() as connection:
        connection.execute(leases.insert().values(**row, ticket="two"))


def test_a_named_annotator_gets_the_open_ticket_again_renewed(make: MakeLoop) -> None:
    loop = make(lease_minutes=10)
    open_round(loop)
    first = loop.ask("random", "ann")[0]
    loop.clock.now += 300  # type: ignore[attr-defined]
    again = loop.ask("random", "ann")[0]
    assert again.id == first.id
    assert again.expires_at == first.expires_at + 300
    assert loop.ask("random", "ann", resume=False)[0].id != first.id
    assert loop.ask("random")[0].id != loop.ask("random")[0].id


def test_another_releases_and_prefers_something_else(make: MakeLoop) -> None:
    loop = make()
    open_round(loop)
    first = loop.ask("random", "ann")[0]
    other = loop.ask("random", "ann", another=True)[0]
    assert other.image_id != first.image_id
    assert loop.ticket(first.id).state == "released"


def test_an_expired_lease_is_served_again(make: MakeLoop) -> None:
    loop = make(lease_minutes=1)
    open_round(loop)
    first = loop.ask("random", "a", n=100)
    assert loop.ask("random", "b") == []
    loop.clock.now += 61  # type: ignore[attr-defined]
    assert sorted(items(loop.ask("random", "b", n=100))) == sorted(items(first))
    assert loop.ticket(first[0].id).state == "expired"
    with pytest.raises(Gone):
        loop.release(first[0].id)


def test_release_and_skip(make: MakeLoop) -> None:
    loop = make()
    number = open_round(loop)
    first = loop.ask("random", "a")[0]
    loop.release(first.id)
    assert loop.ask("random", "b")[0].items == first.items
    second = loop.ask("random", "c")[0]
    loop.skip(second.id, "motion artefact")
    states = {(item["image"], item["slice"]): item["state"] for item in loop.round(number)["items"]}
    assert {states[item] for item in items([second])} == {"skipped"}
    assert not set(items(loop.ask("random", "d", n=100))) & set(items([second]))
    with pytest.raises(Conflict):
        loop.skip(second.id, "again")
    with pytest.raises(NotFound):
        loop.release("no such ticket")
    held = [item["reason"] for item in loop.item_states(second.image_id) if item["state"] == "skipped"]
    assert held == ["motion artefact"] * len(second.items)


def test_a_round_is_done_when_all_is_answered(make: MakeLoop) -> None:
    loop = make()
    number = open_round(loop)
    for count, ticket in enumerate(loop.ask("random", n=100)):
        if count == 0:
            loop.skip(ticket.id, "bad")
        else:
            submit(loop, ticket)
    assert loop.round(number)["state"] == "done"
    assert loop.round_done_since(0)
    assert loop.ask("random") == []


def test_a_new_round_takes_the_place_of_the_old_and_its_tickets_stay_valid(make: MakeLoop) -> None:
    loop = make()
    old = open_round(loop)
    held = loop.ask("random", "a")[0]
    new = open_round(loop)
    assert loop.round(old)["state"] == "superseded"
    assert not set(items([held])) & set(items(loop.ask("random", "b", n=100))), "leased items are not asked again"
    submit(loop, held)
    assert loop.round(new)["state"] == "open"
    assert set(loop.submitted.labeled_slices(held.image_id)) == set(held.slices)


def test_a_strategy_without_a_round_is_served_from_another(make: MakeLoop) -> None:
    loop = make()
    open_round(loop, "spread")
    assert loop.ask("random")[0].strategy == "spread"
    with pytest.raises(NotFound, match="max_entropy"):
        loop.ask("nosuch")


def test_cold_start_stands_in_for_a_strategy_that_needs_a_model(make: MakeLoop) -> None:
    loop = make()
    number = loop.plan("max_entropy", no_signals, model=None)
    assert number is not None
    assert (loop.round(number)["strategy"], loop.round(number)["selected_by"]) == ("max_entropy", "spread")


def test_plan_uses_signals_and_leaves_unreadable_rows_out(make: MakeLoop) -> None:
    loop = make(volumes=2, slices=3, budget=3)

    def source(pool: Pool, needs: tuple[Signal, ...]) -> Swept:
        loop.clock.now += 7  # type: ignore[attr-defined]
        values = np.arange(len(pool), dtype=float)
        unreadable = pool.volume == 1
        values[unreadable] = np.nan
        return Swept({need.name: values for need in needs}, unreadable)

    number = loop.plan("max_entropy", source, model="digest")
    assert number is not None
    assert [(i["image"], i["slice"], i["score"]) for i in loop.round(number)["items"]] == [
        ("patient000", 2, 2.0), ("patient000", 1, 1.0), ("patient000", 0, 0.0),
    ]  # fmt: skip
    assert loop.rounds()[0]["seconds"] == 0, "a sweep is not the choice"


@pytest.mark.parametrize("unit", ["slice", "volume"])
def test_what_is_labelled_while_a_round_is_planned_is_not_asked_for(make: MakeLoop, unit: str) -> None:
    loop = make(volumes=2, slices=3, budget=6, unit=unit)

    def source(pool: Pool, needs: tuple[Signal, ...]) -> Swept:
        tell(loop, "patient000", [0, 1, 2])
        return Swept({need.name: np.ones(len(pool)) for need in needs}, np.zeros(len(pool), bool))

    number = loop.plan("max_entropy", source, model="digest")
    assert number is not None
    states = {(item["image"], item["state"]) for item in loop.round(number)["items"]}
    assert states == {("patient000", "labeled"), ("patient001", "pending")}


def test_an_unreadable_image_with_labels_does_not_stop_the_others(make: MakeLoop) -> None:
    loop = make(volumes=2, slices=3, budget=3)
    tell(loop, "patient000", [1])

    def source(pool: Pool, needs: tuple[Signal, ...]) -> Swept:
        values = np.where(pool.volume == 0, np.nan, 1.0)
        return Swept({need.name: values for need in needs}, pool.volume == 0)

    number = loop.plan("max_entropy", source, model="digest")
    assert number is not None
    assert {item["image"] for item in loop.round(number)["items"]} == {"patient001"}


def test_plan_of_an_exhausted_pool_is_none(make: MakeLoop) -> None:
    loop = make(volumes=1, slices=2)
    tell(loop, "patient000", [0, 1])
    assert loop.plan("random", no_signals, model=None) is None


def test_whole_volume_tickets(make: MakeLoop) -> None:
    loop = make(volumes=3, slices=4, unit="volume", budget=2)
    number = open_round(loop)
    ticket = loop.ask("random", "a")[0]
    assert ticket.items[0]["slice"] is None
    assert ticket.slices == [0, 1, 2, 3]
    submit(loop, ticket)
    assert [item["state"] for item in loop.round(number)["items"]].count("labeled") == 1
    assert {state["state"] for state in loop.item_states(ticket.image_id)} == {"labeled"}


# --- labels


def test_what_a_label_answers_for(make: MakeLoop) -> None:
    loop = make(volumes=1, budget=2)
    open_round(loop)
    ticket = loop.ask("random", "ann")[0]
    image_id = ticket.image_id
    assert loop.asked_slices(loop.catalogue.image(image_id), "ann", None) == (ticket.slices, ticket.id)
    assert loop.asked_slices(loop.catalogue.image(image_id), "other", ticket.id) == (ticket.slices, ticket.id)
    assert loop.asked_slices(loop.catalogue.image(image_id), "other", None) == (list(range(10)), None)
    with pytest.raises(NotFound):
        loop.asked_slices(loop.catalogue.image(image_id), "ann", "no such ticket")


def test_a_late_label_answers_what_was_asked_and_not_the_whole_volume(make: MakeLoop) -> None:
    loop = make(volumes=1, budget=2, lease_minutes=1)
    open_round(loop)
    ticket = loop.ask("random", "ann")[0]
    loop.clock.now += 120  # type: ignore[attr-defined]
    loop.ask("random", "ann", n=0, resume=False)
    assert loop.ticket(ticket.id).state == "expired"
    slices, answered = loop.asked_slices(loop.catalogue.image(ticket.image_id), "ann", None)
    assert (slices, answered) == (ticket.slices, ticket.id)
    tell(loop, ticket.image_id, slices, ticket=answered)
    assert loop.ticket(ticket.id).state == "submitted"
    assert loop.asked_slices(loop.catalogue.image(ticket.image_id), "ann", None) == (list(range(10)), None)


def test_a_ticket_of_another_image_is_refused(make: MakeLoop) -> None:
    loop = make()
    open_round(loop)
    ticket = loop.ask("random", "ann")[0]
    other = next(image_id for image_id in loop.catalogue.versions() if image_id != ticket.image_id)
    with pytest.raises(Conflict, match=other):
        loop.asked_slices(loop.catalogue.image(other), "ann", ticket.id)


def test_tell_keeps_everything_and_the_newest_counts(make: MakeLoop) -> None:
    loop = make()
    first = tell(loop, "patient000", [1, 2], annotator="a", digest="one")
    second = tell(loop, "patient000", [2, 3], annotator="b", digest="two")
    assert loop.submitted.labeled_slices("patient000") == {1: first, 2: second, 3: second}
    assert [(row["annotator"], row["digest"]) for row in loop.submitted.submissions("patient000")] == [
        ("a", "one"),
        ("b", "two"),
    ]
    assert loop.catalogue.counts()["labeled_slices"] == 3
    assert loop.submitted.labeled_images() == [], (
        "a training must not take slices that the composite mask does not hold yet"
    )
    loop.submitted.composed({"patient000": first})
    assert [row["slices"] for row in loop.submitted.labeled_images()] == [[1]]
    loop.submitted.composed({"patient000": second})
    assert [row["slices"] for row in loop.submitted.labeled_images()] == [[1, 2, 3]]


def test_a_label_ends_leases_of_others_on_what_is_labelled_now(make: MakeLoop) -> None:
    loop = make(volumes=1, budget=8, slices_per_ticket=2)
    open_round(loop)
    mine, theirs = loop.ask("random", "me")[0], loop.ask("random", "you")[0]
    assert mine.image_id == theirs.image_id
    tell(loop, mine.image_id, [*mine.slices, *theirs.slices], annotator="me", ticket=mine.id)
    assert (loop.ticket(mine.id).state, loop.ticket(theirs.id).state) == ("submitted", "submitted")


def test_events_follow_what_happens(make: MakeLoop) -> None:
    loop = make()
    start = events.last(loop.store)
    open_round(loop)
    submit(loop, loop.ask("random", "ann")[0])
    kinds = [event["kind"] for event in events.since(loop.store, start)]
    assert kinds[:2] == ["round_opened", "ticket_opened"]
    assert {"label_saved", "ticket_submitted"} <= set(kinds)
    ids = [event["id"] for event in events.since(loop.store, start)]
    assert ids == sorted(ids)


# --- jobs


def test_jobs_go_their_way(make: MakeLoop) -> None:
    loop = make()
    jobs: Jobs = loop.jobs
    job = jobs.queue("train", "unet2d", {}, "because")
    with pytest.raises(Conflict):
        jobs.queue("train", "unet2d", {}, "again")
    jobs.queue("sweep", "random", {}, "of another kind")
    jobs.start(job["id"], None)
    jobs.report(job["id"], fraction=0.5, epoch=1)
    jobs.warn(job["id"], "one label was left out")
    assert jobs.get(job["id"])["progress"] == {"fraction": 0.5, "epoch": 1}
    jobs.end(job["id"], "done", result={"digest": "x"})
    jobs.end(job["id"], "error", message="too late to change")
    ended = jobs.get(job["id"])
    assert (ended["state"], ended["result"], ended["warnings"]) == ("done", {"digest": "x"}, ["one label was left out"])
    with pytest.raises(NotFound):
        jobs.get("nosuch")


def test_new_slices_count_from_what_the_last_training_saw(make: MakeLoop) -> None:
    loop = make()
    tell(loop, "patient000", [1, 2])
    assert loop.jobs.new_slices() == 2
    job = loop.jobs.queue("train", "unet2d", {}, "")
    loop.jobs.start(job["id"], None)
    tell(loop, "patient000", [3])
    assert loop.jobs.new_slices() == 1
    loop.jobs.end(job["id"], "lost")
    assert loop.jobs.new_slices() == 3, "a training lost in a crash saw nothing"


def test_a_failed_write_leaves_nothing(make: MakeLoop) -> None:
    loop = make()
    lease = leases.insert().values(image_id="a", slice=1, ticket="t")

    def write_and_fail() -> None:
        with loop.store.write() as connection:
            connection.execute(lease)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_and_fail()
    with loop.store.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(leases)).scalar_one() == 0


def test_a_wrong_parameter_is_refused(make: MakeLoop) -> None:
    loop = make()
    with pytest.raises(BadInput, match="fraction"):
        loop.plan("foreground_random", no_signals, model="x", parameters={"part": 1})


def test_the_log_is_written_ahead_and_saves_overwrite_it(store: Store) -> None:
    store.grow_log(1 << 20)
    assert "ballast" not in sa.inspect(store.engine).get_table_names()
    if store.engine.dialect.name != "sqlite":
        return
    log = Path(f"{store.engine.url.database}-wal")
    length = log.stat().st_size
    assert length >= 1 << 20
    for number in range(60):  # 6 MB in all
        with store.write() as connection:
            connection.execute(unfiled.insert().values(submission=number, content=bytes(100_000)))
        store.checkpoint()
    assert log.stat().st_size == length
