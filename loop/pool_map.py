"""A map of the pool: its items by what the model sees in them, in two dimensions, made by a job and kept on disk."""

import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

import strategies
from loop.durable import atomic
from loop.embedding import METHODS, embed
from loop.errors import BadInput
from loop.pool import WHOLE, BoolArray, IntArray, Pool
from loop.rounds import Loop
from loop.signals import FloatArray, Signal
from loop.store import Store, labels, leases, round_items, rounds, skips
from loop.sweeping import SweepSource
from loop.workplace import Worker
from strategies._signals import ALGES_IMAGE, BOTTLENECK_FEATURES

MOST_ITEMS = 5000
"""Items on a map: of a larger pool a random part, besides those that are asked for or annotated."""

SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (BOTTLENECK_FEATURES, ALGES_IMAGE)}
"""What items may lie near each other by."""

STATES = ("pool", "asked", "leased", "skipped", "labeled")
_CHUNK = 500


@dataclass(frozen=True)
class PoolMap:
    """Items in two dimensions; row i of every array is one item.

    Attributes:
        images: ids; volume (N,) numbers them. position: (N,) slice, WHOLE for whole volumes. points: (N, 2), any unit.
        score: (N,) mean entropy in nats. pool: how many items the pool had. made_for: what it was made for, see `purpose`.
    """

    images: Sequence[str]
    volume: IntArray
    position: IntArray
    points: FloatArray
    score: FloatArray
    pool: int
    made_for: str


def map_file(state: Path, digest: str, signal: str, method: str) -> Path:
    return state / "maps" / digest / f"{signal}-{method}.npz"


def purpose(loop: Loop) -> str:
    """Changes when there are other items, or, where not all have a place on the map, other rounds."""
    counts = loop.catalogue.counts()
    items = counts["images"] if loop.config.unit == "volume" else counts["slices"]
    open_rounds = [row["id"] for row in loop.newest_rounds().values() if row["state"] == "open"]
    return f"{counts['images']} {counts['slices']}" + (f" {sorted(open_rounds)}" if items > MOST_ITEMS else "")


def read_map(file: Path) -> PoolMap | None:
    """The map, or None if it is not there or damaged."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return PoolMap(
                kept["images"].tolist(), kept["volume"], kept["position"], kept["points"], kept["score"],
                int(kept["pool"]), str(kept["made_for"]),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_map(file: Path, made: PoolMap) -> None:
    with atomic(file, ".npz", durable=False) as temporary:
        np.savez(
            temporary, images=np.array(made.images, str), volume=made.volume, position=made.position,
            points=made.points, score=made.score, pool=made.pool, made_for=made.made_for,
        )  # fmt: skip


def make_map(worker: Worker) -> dict[str, Any]:
    """The job: features of the items and their score, swept where they are not known, then each method's points."""
    digest, signal = worker.weights.current(), SIGNALS[worker.job["request"]["signal"]]
    if digest is None:
        raise BadInput("There is no model yet that could look at the pool.")
    loop, entropy = worker.loop, strategies.get("max_entropy").needs[0]
    made_for, pool = purpose(loop), loop.catalogue.build_pool()
    chosen = _chosen(loop, pool, np.random.default_rng(worker.config.seed))
    source = SweepSource(worker, digest)
    part = replace(pool, held=~chosen, labeled=pool.labeled & chosen)
    signals = source(part, (signal, entropy)).signals
    features, score = signals[signal.name], signals[entropy.name]
    rows = np.flatnonzero(np.isfinite(features.reshape(len(pool), -1)).all(axis=1) & np.isfinite(score) & chosen)
    volumes, volume = np.unique(pool.volume[rows], return_inverse=True)
    images = [pool.items.image_ids[number] for number in volumes]
    for method in sorted(METHODS):  # the quick one first: it is looked at while the other is made
        worker.report(fraction=0.99, items=len(rows), method=method)
        points = embed(features[rows], worker.config.seed, method)
        if points is None:
            raise BadInput(f"A map needs four items that differ; {len(rows)} could be looked at.")
        made = PoolMap(images, volume, pool.position[rows], points, score[rows], len(pool), made_for)
        _write_map(map_file(worker.workplace.state, digest, signal.name, method), made)
    for folder in (worker.workplace.state / "maps").glob("*"):
        if folder.name != digest:
            shutil.rmtree(folder, ignore_errors=True)
    return {"items": len(rows), "pool": len(pool), "model": digest}


def _chosen(loop: Loop, pool: Pool, rng: np.random.Generator) -> BoolArray:
    """(N,) what is on the map: asked and annotated items, and of the others as many at random as there is room for."""
    usable = {*loop.catalogue.ids(labeled=True), *loop.catalogue.ids(labeled=False)}
    there = np.array([image_id in usable for image_id in pool.items.image_ids], bool)[pool.volume]
    if there.sum() <= MOST_ITEMS:
        return there
    order = rng.permutation(np.flatnonzero(there))
    first = _asked_rows(loop.store, pool)[order].astype(np.int8) * 2 + pool.labeled[order]
    chosen = np.zeros(len(pool), bool)
    chosen[order[np.argsort(-first, kind="stable")][:MOST_ITEMS]] = True
    return chosen


def _asked_rows(store: Store, pool: Pool) -> BoolArray:
    """(N,) items of the open rounds."""
    number = {image_id: place for place, image_id in enumerate(pool.items.image_ids)}
    volumes, firsts = np.unique(pool.volume, return_index=True)
    start = dict(zip(volumes.tolist(), firsts.tolist(), strict=True))
    asked = np.zeros(len(pool), bool)
    with store.read() as connection:
        query = (
            sa.select(round_items.c.image_id, round_items.c.slice)
            .join(rounds, rounds.c.id == round_items.c.round)
            .where(rounds.c.state == "open")
        )
        for image_id, index in connection.execute(query):
            row = start.get(number.get(image_id, -1), len(pool)) + max(index, 0)
            if row < len(pool) and pool.position[row] == index:
                asked[row] = True
    return asked


def states_of(store: Store, made: PoolMap) -> tuple[list[int], dict[int, dict[str, Any]]]:
    """(N,) what each item is now, as places in STATES; and {row: score, reason, round} of those that are asked for."""
    rows = {
        (made.images[volume], position): row
        for row, (volume, position) in enumerate(zip(made.volume.tolist(), made.position.tolist(), strict=True))
    }
    state, why = [0] * len(rows), dict[int, dict[str, Any]]()
    asked = (
        sa.select(
            round_items.c.image_id, round_items.c.slice, round_items.c.score, round_items.c.why, round_items.c.round
        )
        .join(rounds, rounds.c.id == round_items.c.round)
        .where(rounds.c.state == "open", round_items.c.state == "pending")
    )
    with store.read() as connection:
        for image_id, index, score, reason, number in connection.execute(asked):
            if (row := rows.get((image_id, index))) is not None:
                state[row] = STATES.index("asked")
                why[row] = {"score": score, "why": reason, "round": number}
        for name, table in (("leased", leases), ("skipped", skips), ("labeled", labels)):
            for start in range(0, len(made.images), _CHUNK):
                some = made.images[start : start + _CHUNK]
                query = sa.select(table.c.image_id, table.c.slice).where(table.c.image_id.in_(some))
                for image_id, index in connection.execute(query):
                    row = rows.get((image_id, index), rows.get((image_id, WHOLE)))
                    if row is not None:
                        state[row] = STATES.index(name)
    return state, why
