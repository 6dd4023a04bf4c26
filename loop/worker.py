"""What a child process does: one training or one sweep, with its progress in the store."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import models
import strategies
from infers.engine import PoolViews, Segmenter, Source, pick_device
from loop.allocation import keep_freed_memory
from loop.config import AppConfig
from loop.errors import BadInput, NextSliceError
from loop.pool import IntArray, Pool
from loop.rounds import Loop, Swept
from loop.signal_cache import Keys, SignalCache
from loop.signals import FloatArray, PoolMean, Signal, sweep, sweep_mean
from loop.store import Store
from loop.views import Ensemble
from models.weights import WeightsFolder
from trainers import engine

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5
_CHUNK_SECONDS = 20.0
_MODELS_WITH_CACHED_SIGNALS = 3


@dataclass(frozen=True)
class Workplace:
    """Where the worker finds everything; survives being sent to another process.

    Attributes:
        root: the studies folder. state: the state folder. labels: the folder of the composite masks.
    """

    root: Path
    state: Path
    labels: Path
    store_url: str
    config: Mapping[str, Any]

    def open_config(self) -> AppConfig:
        return AppConfig.from_json(self.config)

    def spec(self) -> models.ModelSpec:
        """The configured model."""
        config = self.open_config()
        name = model_name(config)
        return models.get(name, labels=config.labels, spacing=config.spacing, patch=config.patch)

    def weights(self) -> WeightsFolder:
        """The configured model's weights."""
        return WeightsFolder(self.state / "models" / model_name(self.open_config()))


def model_name(config: AppConfig) -> str:
    """The network's name, with "auto" made plain."""
    if config.model != "auto":
        return config.model
    return "unet3d" if config.unit == "volume" else "unet2d"


def run(workplace: Workplace, job_id: str) -> None:
    """The child process's main function: do the job, and leave its end in the store whatever happens."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] [%(process)s] %(levelname)s %(message)s")
    _end_with_parent()
    keep_freed_memory()
    store = Store(workplace.store_url)
    loop = Loop(store, workplace.open_config())
    job = loop.jobs.get(job_id)
    try:
        loop.jobs.start(job_id, workplace.weights().current())
        result = JOBS[job["kind"]](Worker(workplace, loop, job))
    except NextSliceError as error:
        logger.error("%s failed: %s", job["kind"], error)
        loop.jobs.end(job_id, "error", message=str(error))
    except Exception as error:  # the store must learn of every end
        logger.exception("%s failed", job["kind"])
        loop.jobs.end(job_id, "error", message=f"{type(error).__name__}: {error}")
    else:
        loop.jobs.end(job_id, "done", result=result)
    finally:
        store.close()


def _end_with_parent() -> None:
    """Stop when the server is gone: it can no longer stop us, and its successor starts the job anew."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


class Worker:
    """One job's tools: the loop, the request, and a throttled way to report."""

    def __init__(self, workplace: Workplace, loop: Loop, job: Mapping[str, Any]) -> None:
        self.workplace, self.loop, self.job = workplace, loop, job
        self.config = workplace.open_config()
        self.spec = workplace.spec()
        self.weights = workplace.weights()
        self._reported = 0.0

    def report(self, **progress: Any) -> None:
        """Put progress into the store, at most twice a second, and always when complete."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS or progress.get("fraction", 0) >= 1:
            self._reported = now
            self.loop.jobs.report(self.job["id"], **progress)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)
        self.loop.jobs.warn(self.job["id"], text)

    def unreadable(self, image_id: str, reason: str) -> None:
        """An image turned out to be unreadable: ask no more for it, and say so."""
        self.loop.catalogue.mark_unreadable(image_id, reason, self.loop.clock())
        self.warn(f"{image_id} was left out: {reason}")


def train(worker: Worker) -> dict[str, Any]:
    """Train on what is annotated now, publish the weights, tell the loop."""
    request = {**worker.config.to_json(), **worker.job["request"]}
    parent = worker.weights.current() if request["train_from"] == "current" else None
    settings = engine.Settings(
        epochs=request["epochs"],
        steps_per_epoch=request["steps_per_epoch"],
        batch_size=request["batch_size"],
        learning_rate=request["learning_rate"],
        seed=request["seed"],
    )
    cases = [
        engine.Case(
            image_id=row["id"],
            image=worker.workplace.root / row["path"],
            mask=worker.workplace.labels / "final" / f"{row['id']}.nii.gz",
            axis=row["axis"],
            slices=row["slices"],
            split=row["split"],
        )
        for row in worker.loop.labeled_images()
    ]
    began = time.monotonic()
    trained = engine.train(
        worker.spec,
        cases,
        settings,
        device=pick_device(request["device"]),
        start=worker.weights.load(parent) if parent else None,
        report=worker.report,
        warn=worker.warn,
    )
    card = {
        "model": worker.spec.name,
        "labels": list(worker.spec.labels),
        "metrics": trained.metrics,
        "curve": trained.curve,
        "parent": parent,
        "seed": settings.seed,
        "settings": {
            key: getattr(settings, key) for key in ("epochs", "steps_per_epoch", "batch_size", "learning_rate")
        },
        "submission": worker.loop.jobs.get(worker.job["id"])["submission"],
        "seconds": time.monotonic() - began,
    }
    digest = worker.weights.publish(trained.weights, card, worker.loop.clock())
    worker.loop.published(worker.spec.name, digest, trained.metrics)
    return {"digest": digest, "metrics": trained.metrics, "curve": trained.curve, "seconds": card["seconds"]}


def sweep_and_plan(worker: Worker) -> dict[str, Any]:
    """Compute what the asked strategies need, and open a round of each."""
    request = worker.job["request"]
    names = list(request["strategies"])
    digest = worker.weights.current()
    source = SweepSource(worker, digest)
    chosen = [worker.loop.strategy(name, request.get("parameters")) for name in names]
    needs = tuple({signal.name: signal for strategy in chosen for signal in strategy.needs}.values())
    if digest is not None and needs:
        source(worker.loop.catalogue.build_pool(), needs)
    opened: dict[str, int | None] = {}
    errors: dict[str, Exception] = {}
    for name in names:
        try:
            opened[name] = worker.loop.plan(
                name, source, model=digest, parameters=request.get("parameters"), budget=request.get("budget")
            )
        except (NextSliceError, ValueError) as error:  # the others' rounds must not fail with it
            errors[name] = error
            worker.warn(f"No round of {name}: {error}")
    if errors and not opened:
        raise BadInput("; ".join(f"{name}: {error}" for name, error in errors.items()))
    return {"rounds": opened, "model": digest}


class SweepSource:
    """What strategies need of a pool by the current model: signals from the cache where known, swept where not.

    The members of an ensemble are the weights that are in use and the newest published before, up to the number asked for.
    Where fewer were published yet, those there are vote; a single one agrees with itself.
    """

    def __init__(self, worker: Worker, digest: str | None) -> None:
        self.worker, self.digest = worker, digest
        self.cache = SignalCache(worker.workplace.state / "signals")

    def __call__(self, pool: Pool, needs: tuple[strategies.Need, ...]) -> Swept:
        """The signals of all rows that can be asked for or are labelled, NaN for the others; means over the rows they name."""
        swept = self._signals(pool, tuple(need for need in needs if isinstance(need, Signal)))
        means = {need.name: self._mean(pool, need) for need in needs if isinstance(need, PoolMean)}
        return Swept({**swept.signals, **means}, swept.unreadable)

    def _signals(self, pool: Pool, needs: tuple[Signal, ...]) -> Swept:
        located = self.worker.loop.catalogue.located()
        spec = self.worker.spec
        names = [
            f"{image_id}@{located[image_id]['version']}/{located[image_id]['axis']}/{spec.spacing}/{spec.patch}"
            for image_id in pool.items.image_ids
        ]
        keys = Keys(names, pool)
        used = ~pool.held | pool.labeled
        found = {need.name: self._load(need, keys) for need in needs}
        missing = {need: used & ~_known(found[need.name], len(pool)) for need in needs}
        lacking = tuple(need for need in needs if missing[need].any())
        if lacking:
            rows = np.flatnonzero(np.any([missing[need] for need in lacking], axis=0))
            self._sweep(pool, lacking, keys, rows)
            found |= {need.name: self._load(need, keys) for need in lacking}
        unreadable = used & ~np.all([np.ones(len(pool), bool), *(_known(v, len(pool)) for v in found.values())], axis=0)
        empty = np.full(len(pool), np.nan, np.float32)
        return Swept({name: empty if value is None else value for name, value in found.items()}, unreadable)

    def _load(self, need: Signal, keys: Keys) -> FloatArray | None:
        return self.cache.load(need, self._model, keys)

    @property
    def _model(self) -> str:
        assert self.digest is not None, "a strategy that needs a model is planned only when there is one"
        return self.digest

    def _mean(self, pool: Pool, mean: PoolMean) -> FloatArray:
        with self._progress(len(mean.rows)) as finished:
            return sweep_mean(self._views(pool, self._segmenter(()), finished), mean)

    def _segmenter(self, members: Sequence[str]) -> Segmenter:
        worker, config = self.worker, self.worker.config
        return Segmenter(
            worker.spec,
            worker.weights.load(self._model),
            device=pick_device(config.device),
            batch=config.sweep_batch,
            members=[worker.weights.load(digest) for digest in members],
            seed=config.seed,
        )

    def _views(self, pool: Pool, segmenter: Segmenter, finished: Callable[[int], None]) -> PoolViews:
        located, root = self.worker.loop.catalogue.located(), self.worker.workplace.root
        sources = [
            Source(image_id, root / located[image_id]["path"], located[image_id]["axis"])
            for image_id in pool.items.image_ids
        ]
        return PoolViews(segmenter, pool, sources, unreadable=self.worker.unreadable, done=finished)

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

    def _sweep(self, pool: Pool, needs: tuple[Signal, ...], keys: Keys, rows: IntArray) -> None:
        members = self._members(
            max((need.view.members for need in needs if isinstance(need.view, Ensemble)), default=0)
        )
        chunks = _Chunks(lambda at, values: self._keep(needs, keys, at, values))
        with self._progress(len(rows)) as finished:
            views = self._views(pool, self._segmenter(members), finished)
            sweep(views, [_with_at_most(len(members), need) for need in needs], rows, chunks.add)
            chunks.flush()
        self.cache.keep_only([card["digest"] for card in self.worker.weights.cards()][-_MODELS_WITH_CACHED_SIGNALS:])

    def _members(self, count: int) -> list[str]:
        """Digests of at most `count` weights of the configured classes, those in use first, then the newest."""
        fitting = [
            card["digest"]
            for card in reversed(self.worker.weights.cards())
            if card.get("labels") == list(self.worker.spec.labels) and card["digest"] != self.digest
        ]
        members = [self._model, *fitting][:count]
        if len(members) < count:
            self.worker.warn(f"An ensemble of {count} is asked for; {len(members)} published weights vote.")
        return members

    def _keep(self, needs: tuple[Signal, ...], keys: Keys, rows: IntArray, values: Mapping[str, FloatArray]) -> None:
        for need in needs:
            bad = np.flatnonzero(~np.isfinite(values[need.name]).reshape(len(rows), -1).all(axis=1))
            if len(bad):
                raise ValueError(f"Signal {need.name!r} is not finite for {keys.pool.items[int(rows[bad[0]])]}.")
            self.cache.append(need, self._model, keys, rows, values[need.name])


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


JOBS: dict[str, Callable[[Worker], dict[str, Any]]] = {"train": train, "sweep": sweep_and_plan}
