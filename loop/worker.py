"""What a child process does: one training, one sweep or what gives way to them, with its progress in the store."""

import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from typing import Any

import strategies
from infers.engine import pick_device
from loop.allocation import keep_freed_memory
from loop.errors import BadInput, NextSliceError, Unavailable
from loop.parent import end_with_parent
from loop.planning import plan_if_needed
from loop.pool_map import make_map
from loop.previewing import preview
from loop.rounds import Loop
from loop.store import Store
from loop.sweeping import SweepSource
from loop.workplace import Worker, Workplace
from models import heads as auxiliary
from trainers import distributed
from trainers.data import Case, load
from trainers.prepared_cache import PreparedCache
from trainers.settings import Settings

logger = logging.getLogger(__name__)

_NICE = 10

_SEED_STEP = 1_000_003
"""Between the seeds of an ensemble's members: far from the seeds that people choose, whose weights would be the same."""


def run(workplace: Workplace, job_id: str) -> None:
    """The child process's main function: do the job, and leave its end in the store whatever happens."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] [%(process)s] %(levelname)s %(message)s")
    end_with_parent()
    keep_freed_memory()
    store = Store(workplace.store_url)
    loop = Loop(store, workplace.open_config())
    job = loop.jobs.get(job_id)
    try:
        loop.jobs.start(job_id, workplace.weights().current())
        worker = Worker(workplace, loop, job)
        plan_if_needed(worker)
        result = JOBS[job["kind"]](worker)
    except Unavailable as error:
        # Lost and not failed: whatever made it due still does, and it is tried again.
        logger.error("%s gave up: %s", job["kind"], error)
        loop.jobs.end(job_id, "lost", message=str(error))
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


def run_after_others(workplace: Workplace, job_id: str) -> None:
    """As `run`, for what may take its time: serving and other jobs have the processor first."""
    os.nice(_NICE)
    run(workplace, job_id)


def train(worker: Worker) -> dict[str, Any]:
    """Train on what is annotated now, publish the weights, tell the loop."""
    request = {**worker.config.to_json(), **worker.job["request"]}
    parent = worker.weights.current() if request["train_from"] == "current" else None
    parents = worker.weights.members(parent) if parent else []
    served = [worker.loop.strategy(name) for name in worker.loop.served()]
    needed = frozenset[str]().union(*(strategy.needs_heads for strategy in served))
    heads = sorted({*request["heads"], *needed & auxiliary.available(worker.spec)})
    count = max(request["ensemble"], *(strategy.needs_members for strategy in served))
    settings = Settings(
        epochs=request["epochs"],
        steps_per_epoch=request["steps_per_epoch"],
        batch_size=request["batch_size"] or worker.spec.batch_size,
        learning_rate=request["learning_rate"],
        seed=request["seed"],
        amp=request["amp"],
        compile=request["compile"],
        patience=request["patience"],
        loss=worker.config.loss,
        dual_branch=worker.config.supervision == "scribble" and worker.config.scribble_method == "dual_branch",
    )
    cases = [
        Case(
            image_id=row["id"],
            image=worker.workplace.root / row["path"],
            mask=worker.workplace.labels / "final" / f"{row['id']}.nii.gz",
            axis=row["axis"],
            slices=row["slices"],
            split=row["split"],
            version=row["version"],
            unlabeled=worker.config.unlabeled(),
            outside=worker.config.supervision == "scribble" and worker.config.scribble_outside,
            fetch=worker.fetching(row["id"]),
        )
        for row in worker.loop.submitted.labeled_images()
    ]
    devices = distributed.devices_for(pick_device(request["device"]), request["gpus"])
    size = request["prepared_cache_mb"] << 20
    cache = PreparedCache(worker.workplace.state / "prepared", size) if size else None
    data = load(worker.spec, cases, worker.warn, cache)
    submission = worker.loop.jobs.get(worker.job["id"])["submission"]
    first, members = "", list[str]()
    result: dict[str, Any] = {}
    told = _Told(worker, count)
    for member in range(count):
        began = time.monotonic()
        own = replace(settings, seed=settings.seed + member * _SEED_STEP)
        trained = distributed.train(
            worker.spec,
            data,
            own,
            devices=devices,
            # A member that was not trained before begins anew, to differ from the others.
            start=worker.weights.load(parents[member], plans=worker.spec.plans) if member < len(parents) else None,
            heads=() if member else heads,
            report=told.of(member),
            warn=worker.warn,
        )
        card = {
            "model": worker.spec.name,
            "labels": list(worker.spec.labels),
            "metrics": trained.metrics,
            "curve": trained.curve,
            "parent": parents[member] if member < len(parents) else None,
            "seed": own.seed,
            "settings": {key: value for key, value in asdict(own).items() if key not in ("seed", "parts")},
            "submission": submission,
            **({"plans": worker.spec.plans} if worker.spec.plans else {}),
            "seconds": time.monotonic() - began,
            "heads": [] if member else heads,
            **({"member": member, "ensemble": count} if count > 1 else {}),
            **({"of": first} if member else {}),
        }
        digest = worker.weights.publish(trained.weights, card, worker.loop.clock(), current=not member)
        members.append(digest)
        if not member:
            first = digest
            worker.loop.published(worker.spec.name, digest, trained.metrics)
            result = {"digest": digest, "metrics": trained.metrics, "curve": trained.curve}
    return {**result, "members": members, "seconds": told.seconds}


class _Told:
    """Reports the progress of several trainings, one after another, as that of one."""

    def __init__(self, worker: Worker, count: int) -> None:
        self._worker, self._count, self._began = worker, count, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def of(self, member: int) -> Callable[..., None]:
        """What the training of a member, counted from 0, reports to."""

        def report(**progress: Any) -> None:
            fraction = (member + progress["fraction"]) / self._count
            which = {"member": member + 1, "members": self._count} if self._count > 1 else {}
            eta = self.seconds * (1 - fraction) / fraction
            self._worker.report(**progress | {"fraction": fraction, "eta": eta} | which)

        return report


def sweep_and_plan(worker: Worker) -> dict[str, Any]:
    """Compute what the asked strategies need, and open a round of each."""
    request = worker.job["request"]
    names = list(request["strategies"])
    digest = worker.weights.current()
    source = SweepSource(worker, digest)
    chosen = {name: worker.loop.strategy(name, request.get("parameters")) for name in names}
    heads = worker.weights.card(digest).get("heads", []) if digest is not None else []
    ready = [strategy for strategy in chosen.values() if strategy.can_choose_with(digest, heads)]
    needs = tuple({signal.name: signal for strategy in ready for signal in strategy.needs}.values())
    if needs:
        source(worker.loop.catalogue.build_pool(), needs)
    opened: dict[str, int | None] = {}
    errors: dict[str, Exception] = {}
    for name in names:
        try:
            _check_heads(worker, chosen[name], digest, heads)
            opened[name] = worker.loop.plan(
                name,
                source,
                model=digest,
                heads=heads,
                parameters=request.get("parameters"),
                budget=request.get("budget"),
            )
        except (NextSliceError, ValueError) as error:  # the others' rounds must not fail with it
            errors[name] = error
            worker.warn(f"No round of {name}: {error}")
    if errors and not opened:
        raise BadInput("; ".join(f"{name}: {error}" for name, error in errors.items()))
    return {"rounds": opened, "model": digest}


def _check_heads(worker: Worker, strategy: strategies.Strategy, digest: str | None, there: Collection[str]) -> None:
    """Warn of heads that the weights in use do not hold; raise BadInput for one that the model cannot have."""
    auxiliary.check(strategy.needs_heads, worker.spec)
    missing = sorted(strategy.needs_heads - set(there))
    if missing and digest is not None:
        worker.warn(
            f"{strategy.name} needs the head {', '.join(missing)}, which was not trained with the weights in use: "
            f"{worker.config.cold_start} stands in until a training, which trains it too."
        )


JOBS: dict[str, Callable[[Worker], dict[str, Any]]] = {
    "train": train, "sweep": sweep_and_plan, "preview": preview, "map": make_map,
}  # fmt: skip
