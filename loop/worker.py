"""What a child process does: one training or one sweep, with its progress in the store."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from infers.engine import pick_device
from loop.allocation import keep_freed_memory
from loop.errors import BadInput, NextSliceError
from loop.rounds import Loop
from loop.store import Store
from loop.sweeping import SweepSource
from loop.workplace import Worker, Workplace
from trainers import engine

logger = logging.getLogger(__name__)


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
    ready = [strategy for strategy in chosen if digest is not None or not strategy.needs_task_model]
    needs = tuple({signal.name: signal for strategy in ready for signal in strategy.needs}.values())
    if needs:
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


JOBS: dict[str, Callable[[Worker], dict[str, Any]]] = {"train": train, "sweep": sweep_and_plan}
