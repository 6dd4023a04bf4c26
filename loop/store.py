"""The only state: images, rounds, tickets, leases, submissions, jobs, events (SQLAlchemy; SQLite file or PostgreSQL).

Tables and how to reach them, no rules: those are the Loop's, which is the only writer. Times are seconds since the epoch.
A write transaction is exclusive (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock), so that what it read still holds
when it writes. SQLite runs in WAL mode with full sync: an acknowledged write survives a crash of the process and of the
machine.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

metadata = sa.MetaData()

images = sa.Table(
    "images",
    metadata,
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("patient", sa.Text, nullable=False, index=True),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("shape", sa.JSON),
    sa.Column("spacing", sa.JSON),
    sa.Column("affine", sa.JSON),
    sa.Column("axis", sa.Integer),
    sa.Column("n_slices", sa.Integer, nullable=False),
    sa.Column("n_labeled", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("missing", sa.Boolean, nullable=False, default=False),
    sa.Column("added_at", sa.Float, nullable=False),
    sa.Column("submission", sa.Integer, nullable=False, default=0),
    sa.Column("composite", sa.Integer, nullable=False, default=0),
    sa.Column("info", sa.JSON, nullable=False, default=dict),
)
sa.Index(
    "images_labeled", images.c.n_labeled, sqlite_where=images.c.n_labeled > 0, postgresql_where=images.c.n_labeled > 0
)
submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("image_id", sa.Text, nullable=False, index=True),
    sa.Column("tag", sa.Text, nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("slices", sa.JSON, nullable=False),
    sa.Column("ticket", sa.Text),
    sa.Column("params", sa.JSON, nullable=False),
)
# What was sent and has no file yet: committed with its record, so that a save waits for one sync and not for three.
unfiled = sa.Table(
    "unfiled",
    metadata,
    sa.Column("submission", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
# DICOM SEGs that were seen in the archive, so that each is taken as a label once, or refused once, whatever dies in between.
returns = sa.Table(
    "returns",
    metadata,
    sa.Column("sop_uid", sa.Text, primary_key=True),
    sa.Column("study_uid", sa.Text, nullable=False),
    sa.Column("series_uid", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("annotator", sa.Text),
    sa.Column("ticket", sa.Text, index=True),
    sa.Column("image_id", sa.Text),
    sa.Column("submission", sa.Integer),
    sa.Column("reason", sa.Text),
)
labels = sa.Table(
    "labels",
    metadata,
    sa.Column("image_id", sa.Text, primary_key=True),
    sa.Column("slice", sa.Integer, primary_key=True),
    sa.Column("submission", sa.Integer, nullable=False, index=True),
    sa.Column("voxels", sa.JSON),
)
skips = sa.Table(
    "skips",
    metadata,
    sa.Column("image_id", sa.Text, primary_key=True),
    sa.Column("slice", sa.Integer, primary_key=True),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("strategy", sa.Text, nullable=False, index=True),
    sa.Column("selected_by", sa.Text, nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False, default=dict),
    sa.Column("model", sa.Text),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("budget", sa.Integer, nullable=False),
    sa.Column("candidates", sa.Integer, nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("closed_at", sa.Float),
    sa.Column("seconds", sa.Float, nullable=False),  # of the choice, without the sweeps for it
)
round_items = sa.Table(
    "round_items",
    metadata,
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("rank", sa.Integer, primary_key=True),
    sa.Column("image_id", sa.Text, nullable=False),
    sa.Column("slice", sa.Integer, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Index("round_items_state", "round", "state", "rank"),
    sa.Index("round_items_item", "image_id", "slice"),
)
tickets = sa.Table(
    "tickets",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
    sa.Column("image_id", sa.Text, nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False, index=True),
    sa.Column("items", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("closed_at", sa.Float),
    sa.Column("reason", sa.Text),
    sa.Index("tickets_open", "state", "expires_at"),
)
leases = sa.Table(
    "leases",
    metadata,
    # The primary key is the promise that no item is ever with two annotators.
    sa.Column("image_id", sa.Text, primary_key=True),
    sa.Column("slice", sa.Integer, primary_key=True),
    sa.Column("ticket", sa.Text, nullable=False, index=True),
)
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("submission", sa.Integer, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("queued_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("progress", sa.JSON, nullable=False, default=dict),
    sa.Column("warnings", sa.JSON, nullable=False, default=list),
    sa.Column("result", sa.JSON),
    sa.Column("message", sa.Text),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)

_ADVISORY_LOCK = 7_231_118
"""Any number of our own: the key of PostgreSQL's advisory lock that makes write transactions exclusive."""


class Store:
    """Connections to the state.

    Args:
        url: SQLAlchemy URL, such as sqlite:////srv/studies/.nextslice/store.sqlite or postgresql+psycopg://...
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)
        # SQLite's own waiting sleeps and starves; queueing the threads of this process here is fair.
        self._turn = threading.Lock()
        with self.write() as connection:
            metadata.create_all(connection)
            for table in metadata.sorted_tables:  # a store from before has the table without the newer indexes
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for queries; each statement sees a consistent state."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """An exclusive transaction: all of it is durable when the block ends, none of it if the block raises."""
        with self._turn, self.engine.connect().execution_options(exclusive=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            yield connection

    def grow_log(self, size: int = 4 << 20) -> None:
        """Make SQLite's log at least so many bytes long.

        A commit that overwrites the log syncs its own blocks; one that lengthens it waits for the file system's journal.
        """
        if self.engine.dialect.name != "sqlite":
            return
        for statement in (
            "DROP TABLE IF EXISTS ballast",
            f"CREATE TABLE ballast AS SELECT zeroblob({size}) AS zeros",
            "DROP TABLE ballast",
        ):
            with self.write() as connection:
                connection.exec_driver_sql(statement)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Move what SQLite's log holds into the database, so that the next commits overwrite the log; waits for nobody."""
        if self.engine.dialect.name == "sqlite":
            with self.read() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    # Last in, first out: a connection that was just used has the pages and the statements of the next one in its cache.
    engine = sa.create_engine(url, connect_args={"timeout": 60}, pool_size=20, max_overflow=60, pool_use_lifo=True)

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        # Mostly the conductor checkpoints, when nobody waits; a commit does it only where the log gets long.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=4000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        if connection.get_execution_options().get("exclusive"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
