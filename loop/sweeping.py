"""What strategies look at, computed in the worker: sweeps with the task's model, and with learners trained on the way."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import models.learners  # noqa: F401 - makes the learners known
import strategies
import trainers.learners  # noqa: F401 - and how each is trained
from infers.engine import PoolViews, Segmenter, pick_device
from infers.representation import EmbeddingViews
from infers.source import Source
from loop.errors import BadInput
from loop.pool import WHOLE, IntArray, Pool
from loop.rounds import Swept
from loop.signal_cache import Keys, SignalCache
from loop.signals import TASK, FloatArray, PoolMean, Signal, Views, sweep, sweep_mean
from loop.views import Ensemble
from loop.workplace import Worker
from models import representation
from models.representation import Representation
from models.weights import WeightsFolder, load_into
from trainers import representation as representation_training
from trainers.representation import RepresentationSettings, Slices, describe

_CHUNK_SECONDS = 20.0
_MODELS_WITH_CACHED_SIGNALS = 3
_MOST_SLICES_TRAINED_ON = 50_000
"""Of a larger pool, a learner sees a random part: memory, and time that more of the same would not repay."""


@dataclass(frozen=True)
class _Model:
    """Weights that signals are made with.

    Attributes:
        grid: what of its preprocessing changes what it sees.
        views: (pool, signals, told of finished items) -> the views, and the signals as these can give them.
    """

    digest: str
    grid: str
    views: Callable[[Pool, tuple[Signal, ...], Callable[[int], None]], tuple[Views, list[Signal]]]


class SweepSource:
    """What strategies need of a pool: signals from the cache where known, swept where not.

    The task's model is the current one. A representation learner is trained here when a strategy needs it and there are no
    weights of it for these images (and labels, if it learns from who is labelled).

    The members of an ensemble are the weights that are in use, those trained to vote beside them, and the newest others, up
    to the number asked for. Where fewer were published yet, those there are vote; a single one agrees with itself.
    """

    def __init__(self, worker: Worker, digest: str | None) -> None:
        self.worker, self.digest = worker, digest
        self.cache = SignalCache(worker.workplace.state / "signals")

    def __call__(self, pool: Pool, needs: tuple[strategies.Need, ...]) -> Swept:
        """The signals of all rows that can be asked for or are labelled, NaN for the others; means over the rows they name."""
        signals, unreadable = dict[str, FloatArray](), np.zeros(len(pool), bool)
        by_model: dict[str, list[Signal]] = {}
        for need in needs:
            if isinstance(need, PoolMean):
                signals[need.name] = self._mean(pool, need)
            else:
                by_model.setdefault(need.model, []).append(need)
        for model, wanted in by_model.items():
            swept = self._signals(pool, self._task() if model == TASK else self._learner(model, pool), tuple(wanted))
            signals |= dict(swept.signals)
            unreadable |= swept.unreadable
        return Swept(signals, unreadable)

    def _signals(self, pool: Pool, model: "_Model", needs: tuple[Signal, ...]) -> Swept:
        located = self.worker.loop.catalogue.located()
        names = [
            f"{image_id}@{located[image_id]['version']}/{located[image_id]['axis']}/{model.grid}"
            for image_id in pool.items.image_ids
        ]
        keys = Keys(names, pool)
        used = ~pool.held | pool.labeled
        kept_as = {need.name: self._kept_as(need) for need in needs}
        found = {need.name: self.cache.load(kept_as[need.name], model.digest, keys) for need in needs}
        missing = {need: used & ~_known(found[need.name], len(pool)) for need in needs}
        lacking = tuple(need for need in needs if missing[need].any())
        if lacking:
            rows = np.flatnonzero(np.any([missing[need] for need in lacking], axis=0))
            self._sweep(pool, model, lacking, keys, rows)
            found |= {need.name: self.cache.load(kept_as[need.name], model.digest, keys) for need in lacking}
        unreadable = used & ~np.all([np.ones(len(pool), bool), *(_known(v, len(pool)) for v in found.values())], axis=0)
        empty = np.full(len(pool), np.nan, np.float32)
        return Swept({name: empty if value is None else value for name, value in found.items()}, unreadable)

    def _task(self) -> "_Model":
        spec = self.worker.spec
        return _Model(self._digest, f"{spec.spacing}/{spec.patch}", self._task_views)

    @property
    def _digest(self) -> str:
        assert self.digest is not None, "a strategy that needs the task's model is planned only when there is one"
        return self.digest

    def _task_views(
        self, pool: Pool, needs: tuple[Signal, ...], finished: Callable[[int], None]
    ) -> tuple[Views, list[Signal]]:
        count = max((need.view.members for need in needs if isinstance(need.view, Ensemble)), default=0)
        members = self._members(count)
        if len(members) < count:
            self.worker.warn(f"An ensemble of {count} is asked for; {len(members)} published weights vote.")
        return self._views(pool, members, finished), [_with_at_most(len(members), need) for need in needs]

    def _mean(self, pool: Pool, mean: PoolMean) -> FloatArray:
        with self._progress(len(mean.rows)) as finished:
            return sweep_mean(self._views(pool, (), finished), mean)

    def _segmenter(self, members: Sequence[str]) -> Segmenter:
        worker, config = self.worker, self.worker.config
        return Segmenter(
            worker.spec,
            worker.weights.load(self._digest, plans=worker.spec.plans),
            device=pick_device(config.device),
            batch=config.sweep_batch,
            members=[worker.weights.load(digest, plans=worker.spec.plans) for digest in members],
            seed=config.seed,
        )

    def _views(self, pool: Pool, members: Sequence[str], finished: Callable[[int], None]) -> PoolViews:
        return PoolViews(
            self._segmenter(members), pool, self._sources(pool), unreadable=self.worker.unreadable, done=finished
        )

    def _sources(self, pool: Pool) -> list[Source]:
        located, root = self.worker.loop.catalogue.located(), self.worker.workplace.root
        fetching = self.worker.fetching
        return [
            Source(image_id, root / located[image_id]["path"], located[image_id]["axis"], fetching(image_id))
            for image_id in pool.items.image_ids
        ]

    # --- representation learners

    def _learner(self, name: str, pool: Pool) -> "_Model":
        """The learner's weights for this pool, trained now if there are none."""
        learner, config = representation.get(name), self.worker.config
        folder = self._weights_of(name)
        settings = RepresentationSettings(config.representation_epochs, config.seed)
        data = self._data_digest(learner, pool, settings)
        digest = next((card["digest"] for card in folder.cards() if card.get("data") == data), None)
        if digest is None:
            digest = self._train(learner, pool, settings, folder, data)

        def views(pool: Pool, needs: tuple[Signal, ...], finished: Callable[[int], None]) -> tuple[Views, list[Signal]]:
            network = learner.network(config.seed)
            load_into(network, folder.load(digest), name)
            return self._embedding_views(learner, network.eval(), pool, finished), list(needs)

        return _Model(digest, f"{learner.size}", views)

    def _weights_of(self, learner: str) -> WeightsFolder:
        return WeightsFolder(self.worker.workplace.state / "models" / learner)

    def _data_digest(self, learner: Representation, pool: Pool, settings: RepresentationSettings) -> str:
        """Of everything that decides what the learner becomes."""
        located = self.worker.loop.catalogue.located()
        images = [
            [image_id, located[image_id]["version"], located[image_id]["axis"]] for image_id in pool.items.image_ids
        ]
        labels = [str(pool.items[int(row)]) for row in np.flatnonzero(pool.labeled)] if learner.uses_labels else []
        told = [learner.name, learner.size, learner.outputs, describe(settings), sorted(images), sorted(labels)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _train(
        self, learner: Representation, pool: Pool, settings: RepresentationSettings, folder: WeightsFolder, data: str
    ) -> str:
        began, device = time.monotonic(), pick_device(self.worker.config.device)
        slices = self._slices(learner, pool)
        weights = representation_training.train(learner, slices, settings, device, self._told_training(learner))
        card = {
            "model": learner.name, "data": data, "slices": len(slices), "settings": describe(settings),
            "seconds": time.monotonic() - began,
        }  # fmt: skip
        return folder.publish(weights, card, self.worker.loop.clock())

    def _told_training(self, learner: Representation) -> Callable[..., None]:
        began = time.monotonic()

        def report(**progress: Any) -> None:
            fraction = progress.get("fraction", 0.0)
            eta = (time.monotonic() - began) * (1 - fraction) / fraction if fraction else None
            # 1 would tell that the sweep, of which this is the beginning, is over.
            self.worker.report(**progress | {"fraction": min(fraction, 0.99)}, training=learner.name, eta=eta)

        return report

    def _slices(self, learner: Representation, pool: Pool) -> Slices:
        """The slices that a learner is trained on: of volumes in random order, until there are enough; in pool order."""
        located = self.worker.loop.catalogue.located()
        volumes = np.random.default_rng(self.worker.config.seed).permutation(np.unique(pool.volume[pool.known]))
        if learner.uses_labels:
            annotated = np.isin(volumes, pool.volume[pool.labeled])
            volumes = np.concatenate([volumes[annotated], volumes[~annotated]])
        lengths = [int(located[pool.items.image_ids[volume]]["n_slices"]) for volume in volumes]
        enough = max(1, int((np.cumsum(lengths) <= _MOST_SLICES_TRAINED_ON).sum()))
        rows = pool.known[np.isin(pool.volume[pool.known], volumes[:enough])]
        data, per_row = list[Tensor](), list[IntArray]()
        with self._progress(len(rows)) as finished:
            views = self._embedding_views(learner, nn.Identity(), pool, finished)
            for group, items in views.slices(rows):
                data.append(items)
                # Of whole volumes each row stands for all of its slices.
                per_row.append(group if len(group) == len(items) else np.repeat(group, len(items)))
        if not data:
            raise BadInput(f"No image could be read to train {learner.name} on.")
        row = np.concatenate(per_row)
        whole = pool.position[row[0]] == WHOLE
        position = np.concatenate([np.arange(len(items)) for items in data]) if whole else pool.position[row]
        return Slices(torch.cat(data), pool.volume[row], pool.patient[row], position, pool.labeled[row])

    def _embedding_views(
        self, learner: Representation, network: nn.Module, pool: Pool, finished: Callable[[int], None]
    ) -> EmbeddingViews:
        device = pick_device(self.worker.config.device)
        return EmbeddingViews(
            learner, network.to(device), pool, self._sources(pool), device=device,
            unreadable=self.worker.unreadable, done=finished,
        )  # fmt: skip

    # --- sweeping

    @contextmanager
    def _progress(self, total: int) -> Iterator[Callable[[int], None]]:
        """On a terminal and in the store: what is told of finished items."""
        began, done = time.monotonic(), 0
        with tqdm(total=total, desc="sweep", unit="item", disable=None) as bar:

            def finished(count: int) -> None:
                nonlocal done
                done += count
                bar.update(count)
                eta = (time.monotonic() - began) * (total - done) / done
                self.worker.report(fraction=done / total, items=done, of=total, eta=eta)

            yield finished

    def _sweep(self, pool: Pool, model: "_Model", needs: tuple[Signal, ...], keys: Keys, rows: IntArray) -> None:
        chunks = _Chunks(lambda at, values: self._keep(model.digest, needs, keys, at, values))
        with self._progress(len(rows)) as finished:
            views, signals = model.views(pool, needs, finished)
            sweep(views, signals, rows, chunks.add)
            chunks.flush()
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop the cached signals of all but the newest weights of each model."""
        folders = [self.worker.weights, *map(self._weights_of, representation.names())]
        cards = [[card for card in folder.cards() if "of" not in card] for folder in folders]
        self.cache.keep_only([card["digest"] for newest in cards for card in newest[-_MODELS_WITH_CACHED_SIGNALS:]])

    def _members(self, count: int) -> list[str]:
        """Digests of at most `count` weights: those in use, their ensemble, then the newest others of the same classes."""
        return self._voters[:count]

    @cached_property
    def _voters(self) -> list[str]:
        """As they are at the beginning: members that a training publishes meanwhile are for the next sweep."""
        weights, spec = self.worker.weights, self.worker.spec
        others = [
            card["digest"]
            for card in reversed(weights.cards())
            if card.get("labels") == list(spec.labels) and card.get("plans", "") == spec.plans
        ]
        return list(dict.fromkeys([*weights.members(self._digest), *others]))

    def _kept_as(self, need: Signal) -> Signal:
        """The signal under the name that it is cached under: that of an ensemble says who votes, which changes."""
        if not isinstance(need.view, Ensemble):
            return need
        voters = hashlib.sha256("".join(self._members(need.view.members)).encode()).hexdigest()[:12]
        return replace(need, name=f"{need.name}_{voters}")

    def _keep(
        self, digest: str, needs: tuple[Signal, ...], keys: Keys, rows: IntArray, values: Mapping[str, FloatArray]
    ) -> None:
        for need in needs:
            bad = np.flatnonzero(~np.isfinite(values[need.name]).reshape(len(rows), -1).all(axis=1))
            if len(bad):
                raise ValueError(f"Signal {need.name!r} is not finite for {keys.pool.items[int(rows[bad[0]])]}.")
            self.cache.append(self._kept_as(need), digest, keys, rows, values[need.name])


def _with_at_most(members: int, need: Signal) -> Signal:
    """The signal of a smaller ensemble, where the asked one is not there yet."""
    if isinstance(need.view, Ensemble) and need.view.members > members:
        return replace(need, view=Ensemble(members))
    return need


class _Chunks:
    """Gathers a sweep's output and hands it on every few seconds: a killed sweep loses no more than that."""

    def __init__(self, keep: Callable[[IntArray, Mapping[str, FloatArray]], None]) -> None:
        self._keep, self._rows, self._values = keep, list[IntArray](), list[Mapping[str, FloatArray]]()
        self._kept = time.monotonic()

    def add(self, rows: IntArray, values: Mapping[str, FloatArray]) -> None:
        self._rows.append(rows)
        self._values.append(values)
        if time.monotonic() - self._kept >= _CHUNK_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            names = self._values[0]
            self._keep(
                np.concatenate(self._rows), {name: np.concatenate([v[name] for v in self._values]) for name in names}
            )
        self._rows, self._values, self._kept = [], [], time.monotonic()


def _known(values: FloatArray | None, n: int) -> np.ndarray:
    """(n,) whether a row has a value."""
    if values is None:
        return np.zeros(n, bool)
    return np.logical_not(np.isnan(values).reshape(n, -1).any(axis=1))
