"""Trainings, sweeps and previews: queued, running with progress, ended; on disk, so that a restart knows what went on."""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from loop import events
from loop.errors import Conflict, NotFound
from loop.store import Store, jobs, labels, submissions

KINDS = ("train", "sweep", "preview", "map")
GIVING_WAY = ("preview", "map")
"""Of the kinds, those that wait for the others, and end when one of them is due."""

ACTIVE = ("queued", "running")
ENDED = ("done", "error", "stopped", "lost")


class Jobs:
    """The job table. One job of a kind runs at a time."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store, self.clock = store, clock

    def queue(
        self, kind: str, name: str, request: Mapping[str, Any], reason: str, *, exclusive: bool = True
    ) -> dict[str, Any]:
        """Ask for a job.

        Raises:
            Conflict: exclusive, and one of this kind is queued or running already.
        """
        with self.store.write() as connection:
            if exclusive and self._active(connection, kind):
                raise Conflict(f"A {kind} is running already. Wait for it{_STOPPED.get(kind, '')}.")
            job_id = str(uuid.uuid4())
            newest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(submissions.c.id), 0))).scalar_one()
            connection.execute(
                jobs.insert().values(
                    id=job_id, kind=kind, name=name, request=dict(request), reason=reason, state="queued",
                    submission=newest, queued_at=self.clock(), progress={}, warnings=[],
                )
            )  # fmt: skip
            events.log(connection, self.clock(), f"{kind}_queued", job=job_id, name=name, reason=reason)
        return self.get(job_id)

    def _active(self, connection: Connection, kind: str) -> bool:
        query = sa.select(jobs.c.id).where(jobs.c.kind == kind, jobs.c.state.in_(ACTIVE)).limit(1)
        return connection.execute(query).first() is not None

    def active(self, kind: str) -> list[dict[str, Any]]:
        """Queued and running jobs of a kind, oldest first."""
        return self._list(jobs.c.kind == kind, jobs.c.state.in_(ACTIVE))

    def queued(self, kind: str = "") -> list[dict[str, Any]]:
        """Jobs that wait to be started, of a kind or all, oldest first."""
        return self._list(jobs.c.state == "queued", *([jobs.c.kind == kind] if kind else []))

    def get(self, job_id: str) -> dict[str, Any]:
        """One job.

        Raises:
            NotFound: no such job.
        """
        found = self._list(jobs.c.id == job_id)
        if not found:
            raise NotFound(f"There is no job {job_id[:100]!r}.")
        return found[0]

    def newest(self, kind: str, *, states: tuple[str, ...] = ACTIVE + ENDED) -> dict[str, Any] | None:
        """The job of a kind that was queued last, among those in one of the states."""
        query = (
            sa.select(jobs)
            .where(jobs.c.kind == kind, jobs.c.state.in_(states))
            .order_by(jobs.c.queued_at.desc())
            .limit(1)
        )
        with self.store.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None

    def all(self, kind: str, limit: int = 100) -> list[dict[str, Any]]:
        """The last jobs of a kind, oldest first."""
        query = sa.select(jobs).where(jobs.c.kind == kind).order_by(jobs.c.queued_at.desc()).limit(limit)
        with self.store.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()][::-1]

    def _list(self, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
        with self.store.read() as connection:
            query = sa.select(jobs).where(*where).order_by(jobs.c.queued_at)
            return [dict(row) for row in connection.execute(query).mappings()]

    def start(self, job_id: str, model: str | None) -> None:
        """The job runs now; `model` is the digest it works with."""
        with self.store.write() as connection:
            newest = connection.execute(sa.select(sa.func.coalesce(sa.func.max(submissions.c.id), 0))).scalar_one()
            values = {"state": "running", "started_at": self.clock(), "model": model, "submission": newest}
            kind = connection.execute(
                jobs.update().where(jobs.c.id == job_id).values(values).returning(jobs.c.kind)
            ).scalar_one()
            events.log(connection, self.clock(), f"{kind}_started", job=job_id)

    def report(self, job_id: str, **progress: Any) -> None:
        """Progress of a running job: fraction in [0, 1], and what else is worth showing (epoch, loss, eta in s)."""
        with self.store.write() as connection:
            kind = connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.state == "running")
                .values(progress=progress)
                .returning(jobs.c.kind)
            ).scalar_one_or_none()
            if kind:
                events.log(connection, self.clock(), f"{kind}_progress", job=job_id, **progress)

    def warn(self, job_id: str, warning: str) -> None:
        """Something that did not stop the job but that a person should know."""
        with self.store.write() as connection:
            found = connection.execute(sa.select(jobs.c.warnings).where(jobs.c.id == job_id)).scalar_one()
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(warnings=[*found, warning]))

    def end(
        self, job_id: str, state: str, *, result: Mapping[str, Any] | None = None, message: str | None = None
    ) -> None:
        """The job is over; a job that has ended already stays as it is."""
        values = {
            "state": state,
            "ended_at": self.clock(),
            "result": dict(result) if result else None,
            "message": message,
        }
        with self.store.write() as connection:
            kind = connection.execute(
                jobs.update().where(jobs.c.id == job_id, jobs.c.state.in_(ACTIVE)).values(values).returning(jobs.c.kind)
            ).scalar_one_or_none()
            if kind:
                events.log(
                    connection, self.clock(), f"{kind}_{state}", job=job_id, result=values["result"], message=message
                )

    def new_slices(self) -> int:
        """Slices annotated since the labels that the last training saw; a training lost in a crash saw none."""
        seen = sa.select(sa.func.coalesce(sa.func.max(jobs.c.submission), 0)).where(
            jobs.c.kind == "train", jobs.c.state.in_(("running", "done", "error", "stopped"))
        )
        with self.store.read() as connection:
            query = sa.select(sa.func.count()).select_from(labels).where(labels.c.submission > seen.scalar_subquery())
            return int(connection.execute(query).scalar_one())


_STOPPED = {
    "train": ", or stop it first (DELETE /train/)",
    "sweep": ", or stop it first (DELETE /scoring/)",
}
