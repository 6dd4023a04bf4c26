"""Do duplicates crowd the batch? One uncertain slice stands in the pool a hundred times; what each strategy picks then.

`python -m bench.redundancy` repeats appendix E of the USIM paper on phantoms: files, training, sweep and strategies are
those that serve. The planted rare structure is the phantoms' lesion.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm import tqdm

import models
import strategies
from bench.phantom import LABELS, write_phantoms
from bench.tables import table
from datastore.volume_io import read_volume
from infers.engine import PoolViews, Segmenter, Source, pick_device
from loop.pool import BoolArray, IntArray, ItemTable, Pool
from loop.signals import FloatArray, PoolMean, Signal, sweep, sweep_mean
from strategies.usim_f import UsimF
from trainers import engine

RARE = "lesion"
COMPARED = ("usim_f", "usim_c", "random", "max_entropy", "bald", "badge", "core_set")
UNIFORM = "uniform from usim_f's query set"
MOST_UNCERTAIN = "top of usim_f's uncertainty"
_AXIS = 2
_ROUND = 1


@dataclass(frozen=True)
class Setup:
    """How large it all is.

    Attributes:
        start: annotated slices that the model is trained on.
        budget: items that a strategy picks.
        copies: pool items that show the duplicated slice, itself included.
        epochs, steps: of training.
    """

    patients: int
    start: int
    budget: int
    copies: int
    epochs: int
    steps: int


FULL = Setup(patients=30, start=30, budget=50, copies=100, epochs=12, steps=25)
QUICK = Setup(patients=12, start=20, budget=25, copies=100, epochs=4, steps=25)


@dataclass(frozen=True)
class Study:
    """Phantoms on disk, and what their ground truth says of each pool row."""

    images: Sequence[Path]
    masks: Sequence[Path]
    volume: IntArray
    position: IntArray
    voxels: IntArray
    """(N, C) voxels of each class, background first."""

    @property
    def rare(self) -> BoolArray:
        """(N,) whether the slice shows the rare structure."""
        shows: BoolArray = self.voxels[:, 1 + LABELS.index(RARE)] > 0
        return shows


def phantom_study(folder: Path, patients: int, seed: int) -> Study:
    """Write phantoms, of whose patients a third have the rare structure, in two to four slices each."""
    ids = write_phantoms(folder, patients=patients, seed=seed)
    images, masks = ([folder / kind / f"{name}.nii.gz" for name in ids] for kind in ("images", "labels"))
    counts = [_voxels(read_volume(mask).array) for mask in masks]
    lengths = [len(count) for count in counts]
    return Study(
        images,
        masks,
        np.repeat(np.arange(len(ids)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate(counts),
    )


def _voxels(mask: np.ndarray) -> IntArray:
    """(slices, C) voxels of each class."""
    slices = np.moveaxis(mask, _AXIS, 0).reshape(mask.shape[_AXIS], -1)
    return np.stack([(slices == value).sum(1) for value in range(len(LABELS) + 1)], axis=1)


def start_set(rare: BoolArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` rows at random, one of which shows the rare structure, so that no class is unknown to the model."""
    first = rng.choice(np.flatnonzero(rare))
    others = rng.permutation(np.delete(np.arange(len(rare)), first))
    return np.sort(np.append(others[: count - 1], first))


def pool_of(study: Study, labeled: IntArray) -> Pool:
    """All slices, some labelled."""
    marked = np.zeros(len(study.volume), bool)
    marked[labeled] = True
    items = ItemTable([path.name for path in study.images], study.volume, study.position)
    held = np.zeros(len(marked), bool)
    return Pool(items, marked, held, study.volume, study.volume, study.position, study.voxels[labeled].sum(0))


def with_copies(pool: Pool, row: int, count: int) -> Pool:
    """The pool with the row's item `count` times more, at the end: each in a volume of its own, a copy of the row's."""
    names = [*pool.items.image_ids]
    volume = np.append(pool.volume, len(names) + np.arange(count))
    position = np.append(pool.position, np.full(count, pool.position[row]))
    names += [f"{names[pool.volume[row]]} copy {number}" for number in range(1, count + 1)]
    no = np.zeros(count, bool)
    return replace(
        pool,
        items=ItemTable(names, volume, position),
        labeled=np.append(pool.labeled, no),
        held=np.append(pool.held, no),
        volume=volume,
        patient=np.append(pool.patient, np.full(count, pool.patient[row])),
        position=position,
    )


def trained(study: Study, labeled: IntArray, setup: Setup, seed: int) -> Segmenter:
    """The default network, trained on the labelled slices' ground truth."""
    spec = models.get("unet2d", labels=LABELS)
    cases = [
        engine.Case(
            study.images[number].name,
            study.images[number],
            study.masks[number],
            _AXIS,
            study.position[labeled[study.volume[labeled] == number]].tolist(),
            "training",
        )
        for number in np.unique(study.volume[labeled])
    ]
    settings = engine.Settings(setup.epochs, setup.steps, batch_size=8, learning_rate=3e-3, seed=seed)
    device = pick_device("auto")
    weights = engine.train(spec, cases, settings, device=device).weights
    return Segmenter(spec, weights, device=device, seed=seed)


class Swept:
    """What strategies need of a pool, each computed once, as the server's sweep does."""

    def __init__(self, segmenter: Segmenter, pool: Pool, paths: Sequence[Path]) -> None:
        sources = [Source(name, path, _AXIS) for name, path in zip(pool.items.image_ids, paths, strict=True)]
        self._views = PoolViews(segmenter, pool, sources, unreadable=_unreadable)
        self._pool, self._known = pool, dict[str, FloatArray]()

    def ask(self, strategy: strategies.Strategy, k: int, seed: int) -> strategies.Selection:
        """What the strategy picks."""
        return strategy.ask(self._pool, self.signals(strategy, k, seed), k, seed=seed, round_no=_ROUND)

    def signals(self, strategy: strategies.Strategy, k: int, seed: int) -> Mapping[str, FloatArray]:
        """What it asks for, in as many steps as it takes."""
        while wanted := strategy.wants(self._pool, self._known, k, seed=seed, round_no=_ROUND):
            rowwise = [need for need in wanted if isinstance(need, Signal)]
            if rowwise:
                self._known |= self._sweep(rowwise)
            self._known |= {need.name: sweep_mean(self._views, need) for need in wanted if isinstance(need, PoolMean)}
        return self._known

    def _sweep(self, needs: Sequence[Signal]) -> dict[str, FloatArray]:
        rows, parts = list[IntArray](), list[Mapping[str, FloatArray]]()

        def keep(at: IntArray, values: Mapping[str, FloatArray]) -> None:
            rows.append(at)
            parts.append(values)

        sweep(self._views, needs, np.arange(len(self._pool)), keep)
        order = np.argsort(np.concatenate(rows))
        return {need.name: np.concatenate([part[need.name] for part in parts])[order] for need in needs}


def _unreadable(image_id: str, reason: str) -> None:
    raise RuntimeError(f"{image_id}: {reason}")
