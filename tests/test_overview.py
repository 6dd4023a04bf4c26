"""What people see of rounds and labels, over a real store: SQLite always, PostgreSQL where its programs are."""

from typing import Any

import pytest
import sqlalchemy as sa

from loop.catalogue import Found
from loop.config import AppConfig
from loop.errors import BadInput, Conflict, NotFound
from loop.pool import Pool
from loop.rounds import Loop, Swept
from loop.signals import Signal
from loop.store import Store, images
from loop.submitted import Submission
from loop.tickets import Wanted

NAMES = ("a", "b", "c%_", "d")


class Clock:
    """A clock that tests turn."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(store: Store, clock: Clock) -> Loop:
    """Four images of ten slices, of which a round asks for eight, two a ticket."""
    config = AppConfig(budget=8, slices_per_ticket=2, cold_start="spread", lease_minutes=60)
    made = Loop(store, config, clock)
    made.catalogue.sync([found(name) for name in NAMES], [], 0.0)
    assert made.plan("spread", no_signals, model=None) == 1
    return made


def found(name: str, **changes: Any) -> Found:
    values = {"path": f"{name}.nii.gz", "version": "1", "shape": (8, 9, 10), "spacing": (1.0, 1.0, 3.0)}
    return Found(**{"id": name, **values, **changes})


def no_signals(pool: Pool, needs: tuple[Signal, ...]) -> Swept:
    raise AssertionError("no signal is needed")


def tell(loop: Loop, image: str, slices: list[int], **values: Any) -> int:
    sent = {"annotator": "", "digest": "d", "file": "f", "slices": slices, "ticket": None, "params": {}, **values}
    return loop.tell(image, Submission(**sent))


def states(loop: Loop, now: float, **wanted: Any) -> list[tuple[str, str, str | None]]:
    return [(row["image"], row["state"], row["annotator"]) for row in loop.overview.worklist(1, now, **wanted)]


# --- the worklist


def test_an_item_is_open_then_leased_then_labelled_and_says_by_whom(loop: Loop, clock: Clock) -> None:
    assert {state for _, state, _ in states(loop, clock())} == {"open"}
    (ticket,) = loop.ask("spread", "ann")
    held = loop.overview.worklist(1, clock(), state="leased")
    assert [(row["image"], row["slice"]) for row in held] == [(ticket.image_id, index) for index in ticket.slices]
    assert {(row["annotator"], row["ticket"], row["at"], row["expires_at"]) for row in held} == {
        ("ann", ticket.id, 1000.0, ticket.expires_at)
    }
    assert loop.overview.round_counts(1, clock()) == {"open": 6, "leased": 2, "labeled": 0, "skipped": 0}
    clock.now += 50
    tell(loop, ticket.image_id, ticket.slices[:1], ticket=ticket.id, annotator="ann")
    done = loop.overview.worklist(1, clock(), annotator="ann")
    assert [(row["slice"], row["state"], row["at"]) for row in done] == [(ticket.slices[0], "labeled", 1050.0)]
    assert loop.overview.round_counts(1, clock()) == {"open": 7, "leased": 0, "labeled": 1, "skipped": 0}


def test_a_lease_that_ran_out_is_open_before_anybody_asks(loop: Loop, clock: Clock) -> None:
    loop.ask("spread", "ann")
    clock.now += 3601
    assert {state for _, state, _ in states(loop, clock())} == {"open"}
    assert loop.overview.round_counts(1, clock())["leased"] == 0


def test_pages_of_the_worklist_have_every_item_once_and_in_order(loop: Loop, clock: Clock) -> None:
    ranks, after = [], -1
    while page := loop.overview.worklist(1, clock(), after=after, limit=3):
        ranks += [row["rank"] for row in page]
        after = ranks[-1]
    assert ranks == list(range(8))


def test_an_image_is_found_by_part_of_its_name_and_signs_mean_themselves(loop: Loop, clock: Clock) -> None:
    assert {image for image, _, _ in states(loop, clock(), image="A")} == {"a"}
    assert {image for image, _, _ in states(loop, clock(), image="%")} == {"c%_"}
    assert states(loop, clock(), image="_b") == []


def test_an_image_that_became_unreadable_is_told(loop: Loop, clock: Clock) -> None:
    loop.catalogue.mark_unreadable("a", "broken", 1.0)
    assert set(states(loop, clock(), image="a")) == {("a", "unreadable", None)}


def test_the_round_to_show_is_the_served_one(loop: Loop) -> None:
    assert loop.overview.round_to_show("random") == 1
    assert loop.plan("random", no_signals, model=None) == 2
    assert loop.overview.round_to_show("spread") == 1
    assert loop.overview.round_to_show("margin") == 2
    with pytest.raises(NotFound, match="no round 9"):
        loop.overview.round_counts(9, 0.0)


def test_there_is_no_round_to_show_before_the_first(store: Store) -> None:
    assert Loop(store, AppConfig(), Clock()).overview.round_to_show("spread") is None


# --- a ticket of a very image


def test_a_ticket_of_a_slice_has_it_first_and_then_what_there_is_room_for(loop: Loop, clock: Clock) -> None:
    asked = [row["slice"] for row in loop.overview.worklist(1, clock(), image="b")]
    (ticket,) = loop.ask("spread", "ann", of=Wanted("b", asked[-1]))
    assert (ticket.image_id, ticket.items[0]["slice"]) == ("b", asked[-1])
    assert ticket.slices == sorted(asked)
    (again,) = loop.ask("spread", "ann", of=Wanted("b"))
    assert again.id == ticket.id


def test_who_has_an_image_is_told_to_others(loop: Loop) -> None:
    loop.ask("spread", "ann", of=Wanted("b"))
    with pytest.raises(Conflict, match=r"'b' is being annotated by ann\."):
        loop.ask("spread", "bo", of=Wanted("b"))


def test_an_image_of_another_ticket_comes_beside_that_one(loop: Loop) -> None:
    (first,) = loop.ask("spread", "ann", of=Wanted("b"))
    (second,) = loop.ask("spread", "ann", of=Wanted("a"))
    assert (first.image_id, second.image_id) == ("b", "a")
    assert {ticket.id for ticket in loop.ask("spread", "ann", 2)} == {first.id, second.id}


def test_what_is_not_asked_for_cannot_be_had(loop: Loop, clock: Clock) -> None:
    asked = [row["slice"] for row in loop.overview.worklist(1, clock(), image="a")]
    other = next(index for index in range(10) if index not in asked)
    with pytest.raises(Conflict, match=f"Slice {other} of 'a' is not asked for in round 1"):
        loop.ask("spread", of=Wanted("a", other))
    tell(loop, "a", asked)
    with pytest.raises(Conflict, match="'a' is labeled already"):
        loop.ask("spread", of=Wanted("a"))
    loop.catalogue.mark_unreadable("b", "broken", 1.0)
    with pytest.raises(Conflict, match="'b' cannot be read"):
        loop.ask("spread", of=Wanted("b"))


def test_nothing_is_leased_by_an_ask_that_is_refused(loop: Loop, clock: Clock) -> None:
    with pytest.raises(Conflict):
        loop.ask("spread", "ann", of=Wanted("a", 99))
    assert loop.overview.round_counts(1, clock())["leased"] == 0


# --- skipping without a ticket


def test_skipped_items_say_why_and_are_not_asked_for_again(loop: Loop, clock: Clock) -> None:
    asked = [row["slice"] for row in loop.overview.worklist(1, clock(), image="a")]
    loop.skip_items("a", asked, "too dark", "ann")
    rows = loop.overview.worklist(1, clock(), image="a")
    assert {(row["state"], row["reason"], row["annotator"]) for row in rows} == {("skipped", "too dark", "ann")}
    pool = loop.catalogue.build_pool()
    assert not {(item.image_id, item.slice) for item in (pool.items[int(row)] for row in pool.candidates)} & {
        ("a", index) for index in asked
    }


def test_what_somebody_annotates_or_annotated_is_not_skipped(loop: Loop) -> None:
    (ticket,) = loop.ask("spread", "ann", of=Wanted("a"))
    with pytest.raises(Conflict, match="being annotated by ann"):
        loop.skip_items("a", ticket.slices, "why not")
    tell(loop, "a", ticket.slices, ticket=ticket.id)
    with pytest.raises(Conflict, match="annotated already"):
        loop.skip_items("a", ticket.slices, "why not")
    with pytest.raises(BadInput, match="slices 0 to 9, got 10"):
        loop.skip_items("a", [10], "why not")
    with pytest.raises(NotFound):
        loop.skip_items("nowhere", [0], "why not")


def test_a_round_whose_last_item_is_skipped_is_done(loop: Loop, clock: Clock) -> None:
    for row in loop.overview.worklist(1, clock()):
        loop.skip_items(row["image"], [row["slice"]], "no")
    assert loop.round_header(1)["state"] == "done"


# --- who did what


def test_annotators_are_counted_with_the_time_their_tickets_took(loop: Loop, clock: Clock) -> None:
    assert loop.overview.annotators() == []
    for seconds in (10, 30, 50):
        (ticket,) = loop.ask("spread", "ann")
        clock.now += seconds
        tell(loop, ticket.image_id, ticket.slices, ticket=ticket.id, annotator="ann")
    clock.now += 500
    tell(loop, ticket.image_id, ticket.slices, ticket=ticket.id, annotator="ann")  # a correction: no new time
    tell(loop, "d", [1, 2, 3, 4, 5, 6, 7, 8, 9], annotator="bo")
    tell(loop, "d", [1], annotator="bo", tag="original")
    ann = {"annotator": "ann", "submissions": 4, "slices": 8, "last_at": clock(), "median_seconds": 30.0}
    bo = {"annotator": "bo", "submissions": 1, "slices": 9, "last_at": clock(), "median_seconds": None}
    assert loop.overview.annotators() == [bo, ann]
    tell(loop, "d", [0], annotator="bo")
    assert loop.overview.annotators()[0]["submissions"] == 2


def test_the_last_labels_come_newest_first_and_in_pages(loop: Loop, clock: Clock) -> None:
    (ticket,) = loop.ask("spread", "ann")
    clock.now += 12
    tell(loop, ticket.image_id, ticket.slices, ticket=ticket.id, annotator="ann")
    other = tell(loop, "d", [3], annotator="bo")
    newest, oldest = loop.overview.submissions(10)
    assert (newest["id"], newest["image"], newest["slices"], newest["seconds"]) == (other, "d", [3], None)
    assert (oldest["annotator"], oldest["seconds"]) == ("ann", 12.0)
    assert [row["id"] for row in loop.overview.submissions(1, before=other)] == [oldest["id"]]


# --- counts that do not grow with the pool


def test_counts_follow_every_change_of_images(loop: Loop) -> None:
    before = loop.catalogue.counts()
    assert (before["images"], before["slices"], before["patients"]) == (4, 40, 4)
    loop.catalogue.sync([found("e"), found("f", error="broken", shape=None, spacing=None)], ["a"], 1.0)
    after = loop.catalogue.counts()
    assert (after["images"], after["slices"], after["unreadable_images"]) == (4, 40, 1)
    loop.catalogue.mark_unreadable("b", "broken", 1.0)
    assert loop.catalogue.counts()["unreadable_images"] == 2
    tell(loop, "b", [1, 2])
    assert loop.catalogue.counts()["labeled_slices"] == 2
    assert loop.catalogue.counts()["labeled_images"] == 1


def test_another_process_sees_that_its_counts_are_old(loop: Loop, store: Store) -> None:
    other = Loop(store, loop.config, Clock())
    assert other.catalogue.counts()["images"] == 4
    loop.catalogue.sync([found("e")], [], 1.0)
    assert other.catalogue.counts()["images"] == 5


def test_unchanged_images_are_not_counted_again(loop: Loop, store: Store) -> None:
    known = loop.catalogue.counts()
    with store.write() as connection:
        connection.execute(sa.delete(images))
    assert loop.catalogue.counts()["images"] == known["images"] == 4
