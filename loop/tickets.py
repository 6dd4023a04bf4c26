"""Tickets: what is asked of one annotator, and the leases that keep it from all others."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.engine import Connection, RowMapping

from loop import events, statements
from loop.config import AppConfig
from loop.errors import Conflict, Gone, NotFound
from loop.pool import WHOLE

_ANY = WHOLE - 1
"""No item's slice."""


@dataclass(frozen=True)
class Ticket:
    """One image with its asked items, leased to one annotator until `expires_at`.

    Attributes:
        items: {"slice", "rank", "score", "why"} each; slice None asks for the whole volume.
        state: open, submitted, skipped, released, expired.
    """

    id: str
    round: int
    strategy: str
    selected_by: str
    image_id: str
    patient: str
    axis: int
    n_slices: int
    annotator: str
    items: list[dict[str, Any]]
    state: str
    opened_at: float
    expires_at: float

    @property
    def slices(self) -> list[int]:
        """The asked slices, ascending; all of them for a whole volume."""
        asked = [item["slice"] for item in self.items]
        return list(range(self.n_slices)) if None in asked else sorted(asked)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"slices": self.slices}


@dataclass(frozen=True)
class Wanted:
    """What a ticket is asked for by name: an image, or one slice of it and what else of the image the ticket has room for."""

    image_id: str
    slice: int | None = None

    def __str__(self) -> str:
        return f"{self.image_id!r}" if self.slice is None else f"Slice {self.slice} of {self.image_id!r}"


class Leases:
    """Tickets, each step within a transaction that `loop.rounds.Loop` opens.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, config: AppConfig, clock: Callable[[], float]) -> None:
        self.config, self.clock = config, clock

    def of_annotator(self, connection: Connection, annotator: str) -> list[RowMapping]:
        """The annotator's open tickets, oldest first."""
        return list(connection.execute(statements.TICKETS_OF_ANNOTATOR, {"annotator": annotator}).mappings())

    def expire(self, connection: Connection) -> None:
        """End the tickets whose time is over."""
        for row in connection.execute(statements.TICKETS_OVER, {"now": self.clock()}).mappings().all():
            self.close(connection, row, "expired", "the lease ran out")

    def close(self, connection: Connection, ticket: RowMapping, state: str, reason: str | None) -> None:
        """End a ticket and its leases."""
        connection.execute(statements.END_LEASES, {"ticket": ticket["id"]})
        values = {"new_state": state, "now": self.clock(), "because": reason}
        connection.execute(statements.CLOSE_TICKET, {"ticket": ticket["id"], **values})
        events.log(
            connection,
            self.clock(),
            f"ticket_{state}",
            ticket=ticket["id"],
            image=ticket["image_id"],
            annotator=ticket["annotator"],
        )

    def renew(self, connection: Connection, ticket: RowMapping) -> Ticket:
        """Let a ticket's time run anew from now."""
        expires = self.clock() + 60 * self.config.lease_minutes
        connection.execute(statements.RENEW_TICKET, {"ticket": ticket["id"], "until": expires})
        return self.read(connection, dict(ticket) | {"expires_at": expires})

    def round_to_serve(self, connection: Connection, strategy: str) -> int | None:
        """The strategy's open round; the newest open one of any other while it has none yet."""
        row = connection.execute(statements.NEWEST_ROUND, {"strategy": strategy}).one_or_none()
        if row is not None:
            return int(row.id) if row.state == "open" else None
        found = connection.execute(statements.NEWEST_OPEN_ROUND).scalar_one_or_none()
        return None if found is None else int(found)

    def lease(self, connection: Connection, number: int, annotator: str, of: Wanted) -> Ticket | None:
        """A ticket of the image's free items; None if there are none, or the wanted one is not among them."""
        image_id, first = of.image_id, of.slice
        wanted = {
            "round": number, "image": image_id, "most": self.config.slices_per_ticket, "first": _ANY if first is None else first,
        }  # fmt: skip
        items = [item_json(row) for row in connection.execute(statements.FREE_ITEMS_OF_IMAGE, wanted).mappings()]
        if not items or first not in (None, items[0]["slice"]):
            return None
        now = self.clock()
        row = {
            "id": uuid.uuid4().hex, "round": number, "image_id": image_id, "annotator": annotator, "items": items,
            "state": "open", "opened_at": now, "expires_at": now + 60 * self.config.lease_minutes,
        }  # fmt: skip
        connection.execute(statements.OPEN_TICKET, row)
        connection.execute(
            statements.LEASE,
            [{"image_id": image_id, "slice": key_of(item["slice"]), "ticket": row["id"]} for item in items],
        )
        events.log(connection, now, "ticket_opened", ticket=row["id"], image=image_id, annotator=annotator)
        return self.read(connection, row)

    def best_image(self, connection: Connection, number: int, avoid: set[tuple[str, int | None]]) -> str | None:
        """The image of the best free item; images nobody works on first, then items just given back last."""
        wanted = {"round": number, "most": len(avoid) + 1}
        rows = connection.execute(statements.FREE_ITEMS, wanted).mappings().all()
        fresh = [row for row in rows if (row["image_id"], index_of(row["slice"])) not in avoid]
        return next((str(row["image_id"]) for row in [*fresh, *rows]), None)

    def read(self, connection: Connection, row: RowMapping | dict[str, Any]) -> Ticket:
        """What a record says, with what its image and round add."""
        image = connection.execute(statements.IMAGE_OF_TICKET, {"image": row["image_id"]}).one()
        by = connection.execute(statements.ROUND_OF_TICKET, {"round": row["round"]}).one()
        return Ticket(
            id=row["id"], round=row["round"], strategy=by.strategy, selected_by=by.selected_by, image_id=row["image_id"],
            patient=image.patient, axis=image.axis, n_slices=image.n_slices, annotator=row["annotator"],
            items=list(row["items"]), state=row["state"], opened_at=row["opened_at"], expires_at=row["expires_at"],
        )  # fmt: skip

    def still_there(self, connection: Connection, rows: Sequence[RowMapping]) -> list[RowMapping]:
        """Of open tickets, those whose image can be had; the others end, so that nobody is given them again."""
        there = []
        for row in rows:
            if connection.execute(statements.USABLE, {"image": row["image_id"]}).first() is None:
                self.close(connection, row, "released", "the image is gone")
            else:
                there.append(row)
        return there

    def row(self, connection: Connection, ticket_id: str) -> RowMapping:
        """The record of a ticket; raises NotFound."""
        row = connection.execute(statements.TICKET, {"ticket": ticket_id}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no ticket {ticket_id[:100]!r}.")
        return row

    def open_row(self, connection: Connection, ticket_id: str) -> RowMapping:
        """The record of an open ticket; raises NotFound, Gone if its time is over, Conflict if it was closed."""
        self.expire(connection)
        row = self.row(connection, ticket_id)
        if row["state"] == "expired":
            raise Gone(
                f"The lease of ticket {ticket_id} ran out and its items are open to others again. Ask for a new one."
            )
        if row["state"] != "open":
            raise Conflict(f"Ticket {ticket_id} is {row['state']} already.")
        return row

    def why_not(self, connection: Connection, number: int, of: Wanted) -> str:
        """Why a round has nothing to hand out of what is wanted, in a sentence."""
        asked = connection.execute(statements.ASKED_OF_IMAGE, {"round": number, "image": of.image_id}).all()
        states = {row.slice: row.state for row in asked if of.slice is None or row.slice in (of.slice, WHOLE)}
        if not states:
            return f"{of} is not asked for in round {number}."
        holders = connection.execute(statements.LEASES_OF_IMAGE, {"image": of.image_id})
        held = [row.annotator or "somebody without a name" for row in holders if row.slice in states]
        if held:
            return f"{of} is being annotated by {', '.join(sorted(set(held)))}."
        return f"{of} is {' and '.join(sorted(set(states.values())))} already."


def key_of(index: int | None) -> int:
    """The store's number of a slice, or of the whole volume (None)."""
    return WHOLE if index is None else index


def index_of(key: int) -> int | None:
    """The slice that the store's number means; None is the whole volume."""
    return None if key == WHOLE else key


def item_json(row: RowMapping) -> dict[str, Any]:
    """An item of a round as it is told."""
    return {"slice": index_of(row["slice"]), "rank": row["rank"], "score": row["score"], "why": row["why"]}
