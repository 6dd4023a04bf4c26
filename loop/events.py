"""What happened, in order: the log behind GET /al/events."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from loop.statements import LOG
from loop.store import Store, events

_KEPT = 20_000
"""Older events are dropped: a page that was away that long reads the state anew."""


def log(connection: Connection, at: float, kind: str, **data: Any) -> None:
    """Append an event within the transaction that made it true."""
    event_id = int(connection.execute(LOG, {"at": at, "kind": kind, "data": data}).scalar_one())
    if event_id % 1000 == 0:
        connection.execute(events.delete().where(events.c.id <= event_id - _KEPT))


def since(store: Store, last_id: int, limit: int = 200) -> list[dict[str, Any]]:
    """Events after last_id, oldest first, as {id, at, kind, data}."""
    query = sa.select(events).where(events.c.id > last_id).order_by(events.c.id).limit(limit)
    with store.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def last(store: Store) -> int:
    """The newest event's id, 0 if there is none."""
    with store.read() as connection:
        return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one())
