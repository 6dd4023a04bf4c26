"""DICOM SEGs that were seen in the archive: noticed, then recorded as a submission or refused, each once."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from loop import events
from loop.errors import Conflict, NotFound
from loop.store import Store, meta, returns

NOTICED, RECORDED, REFUSED = "noticed", "recorded", "refused"
OURS, BEFORE, ELSEWHERE = "ours", "before", "elsewhere"
"""What else a SEG can be: stored by us; there before we first looked; of no image here, or not yet."""
_BEGINS, _DELETED = "a start mask", "a start mask, deleted when the next one came"
"""Reasons of what is ours."""
SHOWN = (NOTICED, RECORDED, REFUSED)

_POSITION = "returns"
_AT_ONCE = 500


@dataclass(frozen=True)
class Noticed:
    """A SEG in the archive.

    Attributes:
        study_uid, series_uid: "" where they are not known yet.
        annotator, ticket: whom it is from, where it was stored through us; None where nobody knows.
    """

    sop_uid: str
    study_uid: str = ""
    series_uid: str = ""
    annotator: str | None = None
    ticket: str | None = None


class Returned:
    """The table of what came back by the archive. Whatever is here was noticed for ever, also after a crash."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store, self.clock = store, clock

    def notice(self, found: Sequence[Noticed], *, state: str = NOTICED, position: Any = None) -> int:
        """Remember SEGs; what is known already stays as it is, except that who sent it may become known.

        Args:
            position: up to where the archive was looked through, kept in the same transaction.

        Returns:
            How many are new.
        """
        fresh = 0
        with self.store.write() as connection:
            for start in range(0, len(found), _AT_ONCE):
                fresh += self._notice(connection, found[start : start + _AT_ONCE], state)
            if position is not None:
                connection.execute(meta.delete().where(meta.c.key == _POSITION))
                connection.execute(meta.insert().values(key=_POSITION, value=position))
        return fresh

    def _notice(self, connection: Connection, found: Sequence[Noticed], state: str) -> int:
        columns = (returns.c.sop_uid, returns.c.series_uid)
        query = sa.select(*columns).where(returns.c.sop_uid.in_([one.sop_uid for one in found]))
        known = dict(connection.execute(query).all())
        fresh = {one.sop_uid: one for one in found if one.sop_uid not in known}
        for one in found:
            this = returns.update().where(returns.c.sop_uid == one.sop_uid)
            if one.sop_uid in known and (one.ticket or one.annotator):
                waits = returns.c.state == NOTICED
                connection.execute(this.where(waits).values(annotator=one.annotator, ticket=one.ticket))
            if known.get(one.sop_uid) == "" and one.series_uid:
                connection.execute(this.values(study_uid=one.study_uid, series_uid=one.series_uid))
        if fresh:
            rows = [asdict(one) | {"state": state, "at": self.clock(), "tries": 0} for one in fresh.values()]
            connection.execute(returns.insert(), rows)
        return len(fresh)

    def position(self) -> Any:
        """Up to where the archive was looked through; None before the first time."""
        with self.store.read() as connection:
            return connection.execute(sa.select(meta.c.value).where(meta.c.key == _POSITION)).scalar_one_or_none()

    def waiting(self) -> list[dict[str, Any]]:
        """Those that are neither recorded nor refused, oldest first."""
        query = sa.select(returns).where(returns.c.state == NOTICED).order_by(returns.c.at, returns.c.sop_uid)
        return self._rows(query)

    def known(self) -> dict[str, int]:
        """{series UID: how many of its instances were seen}."""
        query = sa.select(returns.c.series_uid, sa.func.count()).group_by(returns.c.series_uid)
        with self.store.read() as connection:
            return dict(connection.execute(query).all())

    def end(self, sop_uid: str, state: str, reason: str | None = None, image_id: str | None = None) -> None:
        """It is no label, and why; one that was recorded meanwhile stays so.

        Args:
            image_id: the series that it was drawn on, where that is known.
        """
        waits = (returns.c.sop_uid == sop_uid) & (returns.c.state == NOTICED)
        with self.store.write() as connection:
            values = {"state": state, "reason": reason, "image_id": image_id}
            ended = connection.execute(returns.update().where(waits).values(values)).rowcount
            if ended and (state == REFUSED or image_id):
                events.log(connection, self.clock(), "label_refused", instance=sop_uid, image=image_id, reason=reason)

    def begins(self, sop_uid: str, image_id: str) -> None:
        """It is ours, and the start mask of an image from now on."""
        ours = (returns.c.sop_uid == sop_uid) & (returns.c.state == OURS)
        with self.store.write() as connection:
            now = {"image_id": image_id, "reason": _BEGINS, "at": self.clock()}
            connection.execute(returns.update().where(ours).values(now))

    def former_starts(self, image_id: str, but: str, seconds: float) -> list[str]:
        """Start masks of an image that are in the archive, oldest first: those stored so long ago, without one."""
        query = (
            sa.select(returns.c.sop_uid)
            .where(returns.c.state == OURS, returns.c.image_id == image_id, returns.c.reason == _BEGINS)
            .where(returns.c.sop_uid != but, returns.c.at <= self.clock() - seconds)
            .order_by(returns.c.at)
        )
        with self.store.read() as connection:
            return list(connection.execute(query).scalars())

    def deleted(self, sop_uid: str) -> None:
        """A start mask is no longer in the archive."""
        former = (returns.c.sop_uid == sop_uid) & (returns.c.reason == _BEGINS)
        with self.store.write() as connection:
            connection.execute(returns.update().where(former).values(reason=_DELETED))

    def sent_before(self, sop_uid: str, image_id: str, submission: int) -> None:
        """It is a label that was sent to us directly too, and is recorded as that submission."""
        with self.store.write() as connection:
            recorded(connection, sop_uid, image_id, submission)

    def failed(self, sop_uid: str) -> int:
        """It could not be fetched; how often so far."""
        with self.store.write() as connection:
            change = returns.update().where(returns.c.sop_uid == sop_uid).values(tries=returns.c.tries + 1)
            return int(connection.execute(change.returning(returns.c.tries)).scalar_one())

    def again(self, sop_uid: str) -> dict[str, Any]:
        """Look at a refused one again, or at one from before the campaign.

        Raises:
            NotFound: never seen. Conflict: it was recorded, is ours, or waits already.
        """
        change = returns.update().where(returns.c.sop_uid == sop_uid, returns.c.state.in_((REFUSED, BEFORE, ELSEWHERE)))
        with self.store.write() as connection:
            changed = connection.execute(change.values(state=NOTICED, reason=None, tries=0)).rowcount
        row = self.get(sop_uid)
        if not changed:
            raise Conflict(f"The DICOM SEG {sop_uid} is {row['state']}, and not looked at again.")
        return row

    def get(self, sop_uid: str) -> dict[str, Any]:
        """One of them; raises NotFound if it was never seen."""
        found = self._rows(sa.select(returns).where(returns.c.sop_uid == sop_uid))
        if not found:
            raise NotFound(f"No DICOM SEG {sop_uid[:100]!r} was seen in the archive.")
        return found[0]

    def reconsider(self, studies: Mapping[str, Collection[str]]) -> int:
        """Notice those of studies that have images now, or of series that are images now; how many.

        Args:
            studies: {study UID: ids of its images}.
        """
        elsewhere = self._rows(sa.select(returns).where(returns.c.state == ELSEWHERE))
        found = [
            row["sop_uid"]
            for row in elsewhere
            if row["study_uid"] in studies and row["image_id"] in (None, *studies[row["study_uid"]])
        ]
        with self.store.write() as connection:
            for uid in found:
                change = returns.update().where(returns.c.sop_uid == uid, returns.c.state == ELSEWHERE)
                connection.execute(change.values(state=NOTICED, reason=None))
        return len(found)

    def listed(
        self, state: str | None = None, ticket: str | None = None, limit: int = 100, before: str | None = None
    ) -> list[dict[str, Any]]:
        """The last ones, newest first: in a state, or those that a person looks for, of other series of our studies too.

        Args:
            before: SOP instance UID of the last one known; what comes after it is listed.

        Raises:
            NotFound: `before` was never seen.
        """
        foreign = (returns.c.state == ELSEWHERE) & returns.c.image_id.is_not(None)
        wanted = returns.c.state == state if state else returns.c.state.in_(SHOWN) | foreign
        query = sa.select(returns).where(wanted)
        if ticket is not None:
            query = query.where(returns.c.ticket == ticket)
        if before is not None:
            at, sop_uid = self.get(before)["at"], before
            query = query.where((returns.c.at < at) | ((returns.c.at == at) & (returns.c.sop_uid > sop_uid)))
        return self._rows(query.order_by(returns.c.at.desc(), returns.c.sop_uid).limit(limit))

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self.store.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]


def recorded(connection: Connection, sop_uid: str, image_id: str, submission: int) -> None:
    """Within the transaction that records the submission: it is this one. Raises Conflict if it was recorded before."""
    waits = (returns.c.sop_uid == sop_uid) & (returns.c.state == NOTICED)
    change = returns.update().where(waits).values(state=RECORDED, image_id=image_id, submission=submission)
    if connection.execute(change).rowcount != 1:
        raise Conflict(f"The DICOM SEG {sop_uid} was recorded or refused already.")
