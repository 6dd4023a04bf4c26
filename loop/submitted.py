"""What annotators sent: the record for ever, what still needs its file, and what counts for each slice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from loop import statements
from loop.store import Store, images, labels, unfiled


@dataclass(frozen=True)
class Submission:
    """A label as it was sent.

    Attributes:
        file: where it is kept, relative to the state folder.
        voxels: of each of `slices`, the voxels of each class, background first; () if nobody counted.
        content: what is to be written there, kept in the store until it is; None if the file is there and durable.
        slices: the slices it answers for.
        tag: "final" for an annotation, "original" for a start mask that annotates nothing.
        returned: SOP instance UID of what was noticed in the archive; "" if it came otherwise.
    """

    annotator: str
    digest: str
    file: str
    slices: Sequence[int]
    ticket: str | None
    params: Mapping[str, Any]
    tag: str = "final"
    voxels: Sequence[Sequence[int]] = ()
    content: bytes | None = None
    returned: str = ""


class Submitted:
    """The tables of submissions and of what counts. `loop.rounds.Loop.tell` records them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def repeated(
        self, image_id: str, ticket_id: str, *, digest: str, slices: Sequence[int], params: Mapping[str, Any], tag: str
    ) -> int | None:
        """The number of what a ticket was answered with last, if it is this again: its answer was lost on the way."""
        asked = {"image": image_id, "ticket": ticket_id}
        with self.store.read() as connection:
            last = connection.execute(statements.NEWEST_OF_TICKET, asked).one_or_none()
        sent = (digest, list(slices), dict(params), tag)
        if last is None or (last.digest, list(last.slices), dict(last.params), last.tag) != sent:
            return None
        return int(last.id)

    def submissions(self, image_id: str) -> list[dict[str, Any]]:
        """Everything that was ever sent for an image, oldest first."""
        with self.store.read() as connection:
            found = connection.execute(statements.SUBMISSIONS_OF_IMAGE, {"image": image_id})
            return [dict(row) for row in found.mappings()]

    def unfiled(self, most: int) -> list[tuple[int, str, bytes]]:
        """(submission, its file, what belongs into it) of the oldest submissions that have no file yet."""
        with self.store.read() as connection:
            return [(row.id, row.file, row.content) for row in connection.execute(statements.UNFILED, {"most": most})]

    def content(self, submission: int) -> bytes | None:
        """What was sent, while it has no file; None when its file is there."""
        query = sa.select(unfiled.c.content).where(unfiled.c.submission == submission)
        with self.store.read() as connection:
            found: bytes | None = connection.execute(query).scalar_one_or_none()
        return found

    def filed(self, submissions: Sequence[int]) -> None:
        """Those submissions have a durable file now."""
        with self.store.write() as connection:
            connection.execute(unfiled.delete().where(unfiled.c.submission.in_(submissions)))

    def labeled_slices(self, image_id: str) -> dict[int, int]:
        """{slice: the submission that counts for it}."""
        with self.store.read() as connection:
            return dict(connection.execute(statements.LABELS_OF_IMAGE, {"image": image_id}).all())

    def composed(self, held: Mapping[str, int]) -> None:
        """The composite mask of each image on disk holds everything up to a submission, durably."""
        if not held:
            return
        with self.store.write() as connection:
            for image_id, submission in held.items():
                where = (images.c.id == image_id) & (images.c.composite < submission)
                connection.execute(images.update().where(where).values(composite=submission))

    def labeled_images(self) -> list[dict[str, Any]]:
        """Images with annotated slices: the record, and `slices` ascending. What training and validation see.

        Only slices that the composite mask on disk has: one that was saved a moment ago waits for the next training.
        """
        with self.store.read() as connection:
            rows = (
                connection.execute(sa.select(images).where(images.c.n_labeled > 0).order_by(images.c.row))
                .mappings()
                .all()
            )
            found: dict[str, list[int]] = {}
            composed = (
                sa.select(labels.c.image_id, labels.c.slice)
                .join(images, (images.c.id == labels.c.image_id) & (labels.c.submission <= images.c.composite))
                .order_by(labels.c.slice)
            )
            for row in connection.execute(composed):
                found.setdefault(row.image_id, []).append(row.slice)
        return [dict(row) | {"slices": found[row["id"]]} for row in rows if row["id"] in found]
