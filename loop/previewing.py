"""What the asked images look like to the model, predicted ahead: which are due, and the job that makes them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from datastore.volume_io import read_volume
from infers.engine import Segmenter, pick_device
from infers.source import Source
from loop.errors import BadInput
from loop.pool import WHOLE
from loop.previews import ByteArray, Preview, Previews, Section
from loop.rounds import Loop
from loop.store import Store, images, round_items, rounds
from loop.workplace import Worker

_MOST_SECTIONS = 50
"""Slices of one image that are kept apart; a round that asks for more of it has its others read from the volume."""


@dataclass(frozen=True)
class Asked:
    """An image that people will look at: its place, and the slices of it that a round asks for, first asked first."""

    image_id: str
    path: str
    version: str
    axis: int
    slices: list[int]


def previews_of(worker: Worker) -> Previews:
    return Previews(worker.workplace.state / "previews")


def asked(store: Store, most: int, also: Sequence[str] = ()) -> list[Asked]:
    """Images that `also` names, then those with pending items in an open round, best rank first; at most `most`."""
    rank = sa.func.min(round_items.c.rank)
    pending = (
        sa.select(round_items.c.image_id, rank.label("rank"))
        .join(rounds, rounds.c.id == round_items.c.round)
        .where(rounds.c.state == "open", round_items.c.state == "pending")
        .group_by(round_items.c.image_id)
        .order_by(rank, round_items.c.image_id)
        .limit(most)
    )
    with store.read() as connection:
        ids = list(dict.fromkeys([*also, *(row.image_id for row in connection.execute(pending))]))[:most]
        facts = {
            row.id: row
            for row in connection.execute(
                sa.select(images.c.id, images.c.path, images.c.version, images.c.axis, images.c.n_slices).where(
                    images.c.id.in_(ids), ~images.c.missing, images.c.error.is_(None)
                )
            )
        }
        wanted: dict[str, list[int]] = {}
        items = (
            sa.select(round_items.c.image_id, round_items.c.slice)
            .join(rounds, rounds.c.id == round_items.c.round)
            .where(rounds.c.state == "open", round_items.c.image_id.in_(ids))
            .order_by(round_items.c.rank)
        )
        for image_id, index in connection.execute(items):
            wanted.setdefault(image_id, []).append(index)
    return [
        Asked(
            image_id,
            facts[image_id].path,
            facts[image_id].version,
            facts[image_id].axis,
            _slices(wanted.get(image_id, []), facts[image_id].n_slices),
        )
        for image_id in ids
        if image_id in facts
    ]


def _slices(asked_for: list[int], n_slices: int) -> list[int]:
    """Of a whole volume, the middle one stands for it."""
    shown = [n_slices // 2 if index == WHOLE else index for index in asked_for]
    return [index for index in dict.fromkeys(shown) if index < n_slices][:_MOST_SECTIONS]


def lacking(previews: Previews, digest: str, wanted: Sequence[Asked]) -> list[Asked]:
    """Those whose prediction by this model, or one of whose slices, is not there."""
    found = {image.image_id: previews.of(image.image_id, image.version, digest) for image in wanted}
    return [image for image in wanted if (own := found[image.image_id]) is None or own.lacks(image.slices)]


def due(loop: Loop, previews: Previews, digest: str, also: Sequence[str]) -> bool:
    """Whether a job would find something to do."""
    return bool(lacking(previews, digest, asked(loop.store, loop.config.previews, also)))


def preview(worker: Worker) -> dict[str, Any]:
    """Predict the asked images that no prediction by the current model is there of; ends early when a newer model comes."""
    digest = worker.weights.current()
    if digest is None:
        raise BadInput("There is no model yet that could predict.")
    most = worker.config.previews
    previews = previews_of(worker)
    wanted = asked(worker.loop.store, most, worker.job["request"].get("images", []))
    todo = lacking(previews, digest, wanted)
    began, made = time.monotonic(), 0
    segmenter = Segmenter(
        worker.spec,
        worker.weights.load(digest, plans=worker.spec.plans),
        device=pick_device(worker.config.device),
        batch=worker.config.sweep_batch,
        seed=worker.config.seed,
    )
    for number, image in enumerate(todo, 1):
        if worker.weights.current() != digest:
            return {"images": made, "model": digest, "ended": "a newer model is in use"}
        try:
            _predict(worker, segmenter, previews, digest, image)
            made += 1
        except BadInput as error:
            worker.unreadable(image.image_id, str(error))
        eta = (time.monotonic() - began) * (len(todo) - number) / number
        worker.report(fraction=number / len(todo), images=number, of=len(todo), eta=eta)
    previews.keep_only(digest, {(image.image_id, image.version) for image in wanted}, most)
    return {"images": made, "model": digest}


def _predict(worker: Worker, segmenter: Segmenter, previews: Previews, digest: str, image: Asked) -> None:
    source = Source(image.image_id, worker.workplace.root / image.path, image.axis, worker.fetching(image.image_id))
    volume = source.volume()
    # What comes from an archive is known in full only once it was fetched.
    record = worker.loop.catalogue.image(image.image_id)
    image = replace(image, version=record["version"], axis=record["axis"])
    if max(image.slices, default=0) >= volume.array.shape[image.axis]:
        raise BadInput("The file changed: it has fewer slices now.")
    there = previews.of(image.image_id, image.version, digest)
    mask, uncertainty = _read(there) if there else segmenter.predict_with_uncertainty(volume, image.axis)

    def section(index: int) -> Section:
        return Section(*(np.take(array, index, image.axis) for array in (volume.array, mask, uncertainty)))

    if there:
        for index in there.lacks(image.slices):
            there.keep_section(index, section(index))
        return
    sections = {index: section(index) for index in image.slices}
    previews.keep(image.image_id, image.version, digest, mask, uncertainty, volume.affine, sections)


def _read(there: Preview) -> tuple[ByteArray, ByteArray]:
    return read_volume(there.mask).array, read_volume(there.uncertainty).array
