"""Where the picks of a run's last round lie among the pool: its features in two dimensions (USIM paper, figure 3)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import strategies
from bench.campaign.kept import LABELED, PICKED, POOL
from loop.durable import atomic
from loop.embedding import embed
from loop.pool import WHOLE, BoolArray, IntArray, Pool
from loop.rounds import Loop, Swept
from loop.signals import FloatArray
from loop.sweeping import SweepSource
from loop.workplace import Worker, Workplace
from strategies._base import Need
from strategies._signals import BOTTLENECK_FEATURES

MOST_ROWS = 3000
"""Items drawn on a map: more take long, and hide each other."""


def write_map(file: Path, workplace: Workplace, loop: Loop, planned: Mapping[str, Any], seed: int) -> bool:
    """Keep the map of a round: `points` (N, 2), `state` (N,) int8, `image` (N,) and `slice` (N,), WHOLE for volumes.

    The features are those of the model that chose, of the strategy's own kind if it looks at any, else the bottleneck's.
    State is 0 in the pool, 1 labelled before the round, 2 picked in it.

    Args:
        planned: a round of the loop, also one whose items were annotated since.

    Returns:
        False where there is nothing to show: fewer than four items, or all of them alike.
    """
    job = loop.jobs.queue("sweep", "map", {}, "campaign", exclusive=False)
    loop.jobs.start(job["id"], planned["model"])
    source = SweepSource(Worker(workplace, loop, job), planned["model"])
    pool, picked = _as_it_was(loop, planned["id"])
    features = own_features(loop.strategy(planned["selected_by"]), pool, source, planned)
    loop.jobs.end(job["id"], "done")
    state = np.where(picked, PICKED, np.where(pool.labeled, LABELED, POOL)).astype(np.int8)
    known = np.asarray(np.isfinite(features).all(axis=1))
    rows = shown(state, known, np.random.default_rng(seed))
    points = embed(features[rows], seed)
    if points is None:
        return False
    images = np.array(pool.items.image_ids)[pool.volume[rows]]
    with atomic(file, ".npz") as temporary:
        np.savez(temporary, points=points, state=state[rows], image=images, slice=pool.position[rows])
    return True


def _as_it_was(loop: Loop, number: int) -> tuple[Pool, BoolArray]:
    """The pool as the round found it, and (N,) whether an item is of the round."""
    pool = loop.catalogue.build_pool()
    volume = {image_id: place for place, image_id in enumerate(pool.items.image_ids)}
    picked = np.zeros(len(pool), bool)
    for item in loop.round(number)["items"]:
        position = WHOLE if item["slice"] is None else item["slice"]
        picked |= (pool.volume == volume[item["image"]]) & (pool.position == position)
    return replace(pool, labeled=pool.labeled & ~picked), picked


def own_features(
    strategy: strategies.Strategy,
    pool: Pool,
    source: Callable[[Pool, tuple[Need, ...]], Swept],
    planned: Mapping[str, Any],
) -> FloatArray:
    """(N, D): the last of the vectors that the strategy asks for, or bottleneck features; NaN where nothing is known."""
    signals = dict[str, FloatArray]()
    draw = {"seed": planned["seed"], "round_no": planned["id"]}
    while wanted := strategy.wants(pool, signals, planned["budget"], **draw):
        signals |= source(pool, wanted).signals
    vectors = [values for values in signals.values() if values.ndim == 2 and values.shape[1] > 1]
    return vectors[-1] if vectors else source(pool, (BOTTLENECK_FEATURES,)).signals[BOTTLENECK_FEATURES.name]


def shown(state: npt.NDArray[np.int8], known: BoolArray, rng: np.random.Generator, most: int = MOST_ROWS) -> IntArray:
    """Rows of a map, ascending: all that are labelled or picked, and of the others as many at random as make `most`."""
    marked, others = np.flatnonzero(known & (state > POOL)), np.flatnonzero(known & (state == POOL))
    drawn = rng.permutation(others)[: max(0, most - len(marked))]
    return np.sort(np.concatenate([marked, drawn]))
