"""What people want to see of rounds and labels: who should annotate what, and who annotated what. Reads only."""

import statistics
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from loop.errors import NotFound
from loop.pool import WHOLE
from loop.store import Store, images, labels, leases, round_items, rounds, skips, submissions, tickets

STATES = ("open", "leased", "labeled", "skipped", "unreadable")

_TIMED = 200
"""An annotator's last so many tickets tell how long one takes."""

_FOLDED = 5_000

_now: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Float)
_round: sa.BindParameter[int] = sa.bindparam("round", type_=sa.Integer)

_held = leases.join(tickets, (tickets.c.id == leases.c.ticket) & (tickets.c.expires_at > _now))
_answer = sa.case((round_items.c.slice == WHOLE, images.c.submission), else_=labels.c.submission)
_same = {
    table.name: (table.c.image_id == round_items.c.image_id) & (table.c.slice == round_items.c.slice)
    for table in (leases, labels, skips)
}
_state = sa.case(
    (round_items.c.state != "pending", round_items.c.state),
    (images.c.missing | images.c.error.is_not(None), "unreadable"),
    (tickets.c.id.is_not(None), "leased"),
    else_="open",
)
_ENTRIES = (
    sa.select(
        round_items.c.rank, round_items.c.image_id.label("image"), round_items.c.slice, round_items.c.score,
        round_items.c.why, images.c.patient, images.c.path, images.c.axis, images.c.n_slices, _state.label("state"),
        sa.case((_state == "skipped", skips.c.reason)).label("reason"),
        sa.case((_state == "leased", tickets.c.expires_at)).label("expires_at"),
    )
    .select_from(
        round_items.join(images, images.c.id == round_items.c.image_id)
        .outerjoin(_held, _same["leases"])
        .outerjoin(labels, _same["labels"])
        .outerjoin(submissions, submissions.c.id == _answer)
        .outerjoin(skips, _same["skips"])
    )
    .where(round_items.c.round == _round)
    .order_by(round_items.c.rank)
)  # fmt: skip


def _of_state(leased: Any, labeled: Any, skipped: Any) -> sa.Case[Any]:
    return sa.case((_state == "leased", leased), (_state == "labeled", labeled), (_state == "skipped", skipped))


_annotator = _of_state(tickets.c.annotator, submissions.c.annotator, skips.c.annotator)
_ENTRIES = _ENTRIES.add_columns(
    _annotator.label("annotator"),
    _of_state(tickets.c.id, submissions.c.ticket, None).label("ticket"),
    _of_state(tickets.c.opened_at, submissions.c.at, skips.c.at).label("at"),
)
_LEASED = (
    sa.select(sa.func.count())
    .select_from(_held.join(round_items, _same["leases"]))
    .where(round_items.c.round == _round, round_items.c.state == "pending")
)
_COUNTS = (
    sa.select(round_items.c.state, sa.func.count().label("n"))
    .where(round_items.c.round == _round)
    .group_by(round_items.c.state)
)
_SECONDS = sa.case(
    # A later correction by the same ticket does not tell how long the ticket took.
    (
        (tickets.c.state == "submitted") & (submissions.c.at <= tickets.c.closed_at),
        submissions.c.at - tickets.c.opened_at,
    )
)
_SENT = sa.select(
    submissions.c.id, submissions.c.image_id.label("image"), submissions.c.tag, submissions.c.annotator, submissions.c.at,
    submissions.c.slices, submissions.c.ticket, _SECONDS.label("seconds"),
).select_from(submissions.outerjoin(tickets, tickets.c.id == submissions.c.ticket))  # fmt: skip


@dataclass
class Work:
    """What one annotator did.

    Attributes:
        slices: how many their labels answered for; one that was labelled twice counts twice.
        last_at: when their last label came.
        seconds: of the last tickets, from when it was handed out until the label came.
    """

    submissions: int = 0
    slices: int = 0
    last_at: float = 0.0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMED))

    def to_json(self) -> dict[str, Any]:
        return {
            "submissions": self.submissions,
            "slices": self.slices,
            "last_at": self.last_at,
            "median_seconds": statistics.median(self.seconds) if self.seconds else None,
        }


class Overview:
    """Worklist, labels and annotators. Nothing here takes longer because the pool is larger."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._work: dict[str, Work] = {}
        self._seen = 0
        self._counting = threading.Lock()

    def round_to_show(self, strategy: str) -> int | None:
        """The newest open round of a strategy, else of any other, else the newest round; None before the first."""
        is_open, mine = rounds.c.state == "open", rounds.c.strategy == strategy
        order = (sa.case((is_open & mine, 0), (is_open, 1), else_=2), rounds.c.id.desc())
        with self.store.read() as connection:
            return connection.execute(sa.select(rounds.c.id).order_by(*order).limit(1)).scalar_one_or_none()

    def worklist(
        self,
        round_no: int,
        now: float,
        *,
        state: str | None = None,
        annotator: str | None = None,
        image: str = "",
        after: int = -1,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """A round's items in asking order, each with its state and with whom it is.

        Args:
            now: the time; a lease that ran out before counts no more.
            state: one of `STATES`. annotator: who holds, annotated or skipped it; "" is nobody in particular.
            image: text that the image's id has in it, in either case of letters.
            after: the rank of the last one that is known already.
        """
        query = _ENTRIES.where(round_items.c.rank > after).limit(limit)
        if state is not None:
            query = query.where(_state == state)
        if annotator is not None:
            query = query.where(_annotator == annotator)
        if image:
            query = query.where(round_items.c.image_id.icontains(image, autoescape=True))
        with self.store.read() as connection:
            rows = connection.execute(query, {"round": round_no, "now": now}).mappings().all()
        return [dict(row) | {"slice": None if row["slice"] == WHOLE else row["slice"]} for row in rows]

    def round_counts(self, round_no: int, now: float) -> dict[str, int]:
        """How many of a round's items are in each state.

        Raises:
            NotFound: no such round.
        """
        with self.store.read() as connection:
            found = {row.state: int(row.n) for row in connection.execute(_COUNTS, {"round": round_no})}
            leased = int(connection.execute(_LEASED, {"round": round_no, "now": now}).scalar_one())
        if not found:
            raise NotFound(f"There is no round {round_no}.")
        return {"open": found.pop("pending", 0) - leased, "leased": leased, "labeled": 0, "skipped": 0, **found}

    def submissions(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """The last labels, newest first, with the seconds from ticket to label where one was asked for.

        Args:
            before: only those before this submission.
        """
        query = _SENT.order_by(submissions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(submissions.c.id < before)
        with self.store.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def annotators(self) -> list[dict[str, Any]]:
        """What each annotator did, most slices first. Only labels that came since the last call are read."""
        with self._counting:
            with self.store.read() as connection:
                while rows := self._unseen(connection):
                    for row in rows:
                        self._count(row)
            people = [{"annotator": name, **work.to_json()} for name, work in self._work.items()]
        return sorted(people, key=lambda one: (-one["slices"], one["annotator"]))

    def _unseen(self, connection: Connection) -> list[RowMapping]:
        query = _SENT.where(submissions.c.id > self._seen).order_by(submissions.c.id).limit(_FOLDED)
        return list(connection.execute(query).mappings())

    def _count(self, row: RowMapping) -> None:
        self._seen = row["id"]
        if row["tag"] != "final":
            return
        work = self._work.setdefault(row["annotator"], Work())
        work.submissions += 1
        work.slices += len(row["slices"])
        work.last_at = row["at"]
        if row["seconds"] is not None:
            work.seconds.append(row["seconds"])
