"""Keeps the loop going: looks at what is true now, and starts the training, the sweep, the plan or the preview that is due.

It acts on the store's state, never on remembered events, so that a server that was killed goes on where it was.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing import connection, forkserver
from typing import Any

from sqlalchemy.engine import RowMapping

from loop import previewing
from loop.errors import Conflict, NextSliceError
from loop.forking import fork_context
from loop.jobs import GIVING_WAY, KINDS, Jobs
from loop.previews import Previews
from loop.retrain import Counts, RetrainPolicy
from loop.rounds import Loop, Swept
from loop.worker import run, run_after_others
from loop.workplace import Workplace, model_name

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5
_PAUSE_SECONDS = 0.2
_MOST_PAUSE_SECONDS = 1.0
_REST = 20
"""However many labels come in, looking takes about this small a part of the time that serving needs."""

_FIRST_LOOK_SECONDS = 10.0
_SETTLE_SECONDS = 30.0
"""What saves left for later waits no longer than this, however fast they come: it would take a third of their time from them."""

_LOST_SECONDS = 1.0
"""A training that was lost, such as to an archive that is down, is due again at once, and begins no sooner than this after it."""

_RETRY_SECONDS = 60.0
"""A plan that opened no round, or failed, is tried again when something changed, or after this long."""

_PLAN_HERE_SLICES = 2_000_000
"""Up to this many slices a strategy that needs no model is planned within the server, without a child process."""

_MOST_WANTED = 50
"""Images that were looked at without being asked for, of which a prediction is made too: the last ones."""


class Conductor:
    """Starts and stops the child processes. One training and one sweep run at a time; previews and maps wait for them.

    Args:
        refresh: looks for new images; called at least every `rescan_seconds` and after `changed`.
        settle: does what saves left for later; called before a training, and every few seconds.
        quiet: whether that would disturb no save.
    """

    def __init__(
        self,
        loop: Loop,
        workplace: Workplace,
        refresh: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
        quiet: Callable[[], bool] = lambda: True,
    ) -> None:
        config = loop.config
        self.loop, self.workplace, self._refresh = loop, workplace, refresh
        self._settle, self._quiet = settle, quiet
        self.policy = RetrainPolicy(
            config.retrain, config.retrain_after, config.retrain_when_round_done, config.retrain_min_interval
        )
        self._children: dict[str, Any] = {}
        self._guard = threading.RLock()
        self._stop, self._wake, self._looked = threading.Event(), threading.Event(), threading.Event()
        self._at_once = threading.Event()
        self._changed, self._scanned, self._settled = True, float("-inf"), float("-inf")
        self._looking = 0.0
        self._had_a_round: set[str] = set()
        self._tried: dict[str, tuple[tuple[Any, ...], float]] = {}
        self._previewing: str | None = None
        self._wanted: deque[str] = deque(maxlen=_MOST_WANTED)
        self._previewed: tuple[tuple[Any, ...], float] = ((), float("-inf"))
        self._previews = Previews(workplace.state / "previews")
        self._thread = threading.Thread(target=self._run, daemon=True, name="conductor")
        # A fork server has torch imported, in a process without threads; forking the server now would not be safe.
        self._processes = fork_context()

    def start(self) -> None:
        """Begin; jobs that a former server left running are lost, because their processes ended with it."""
        for kind in KINDS:
            for job in self.loop.jobs.active(kind):
                self.loop.jobs.end(job["id"], "lost", message="the server ended while it ran")
        forkserver.ensure_running()  # now, so that its imports are done when the first job comes
        self._thread.start()
        # A folder of ordinary size is known before the first viewer asks; a huge one is read while others are served.
        self._looked.wait(_FIRST_LOOK_SECONDS)

    def close(self) -> None:
        """Stop, and end the child processes."""
        self._stop.set()
        self._look_at_once()
        if self._thread.is_alive():
            self._thread.join(10)
        for kind in KINDS:
            self.stop(kind)

    def changed(self) -> None:
        """Something happened in the studies folder: look soon."""
        self._changed = True
        self._wake.set()

    def wake(self) -> None:
        """Look at the state soon: labels may come faster than looks should."""
        self._wake.set()

    def _look_at_once(self) -> None:
        """For what is rare, and is waited for: a job was asked for, or has ended."""
        self._at_once.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            self._at_once.clear()
            try:
                self.tick()
                self._looked.set()
            except Exception:  # the conductor must outlive every error; it is told in the log and tried again
                logger.exception("The conductor met an error and goes on")
                self._stop.wait(1)
            self._wake.wait(_TICK_SECONDS)
            self._at_once.wait(min(max(_PAUSE_SECONDS, _REST * self._looking), _MOST_PAUSE_SECONDS))

    def tick(self) -> None:
        """One look at the state."""
        began = time.monotonic()
        if self._changed or time.monotonic() - self._scanned > self.loop.config.rescan_seconds:
            self._changed, self._scanned = False, time.monotonic()
            self._refresh()
        with self._guard:
            self._reap()
            self._retrain_if_due()
            self._plan_if_due()
        # Not under the guard: it may take its time, and annotators must not wait for it.
        if self._quiet() or time.monotonic() - self._settled > _SETTLE_SECONDS or self._training_begins():
            settling = time.monotonic()
            self._settle()
            self.loop.store.checkpoint()
            self._settled = time.monotonic()
            began += self._settled - settling
        with self._guard:
            self._give_way()
            self._preview_if_due()
            queued = {job["kind"] for job in self.loop.jobs.queued()}
            for kind in KINDS:
                if kind in queued:
                    self._start_queued(kind)
        self._looking = time.monotonic() - began

    # --- what is due

    def _retrain_if_due(self) -> None:
        reason = self.due()
        if reason and not self._just_lost():
            logger.info("Retraining: %s", reason)
            self.loop.jobs.queue("train", model_name(self.loop.config), {}, reason)

    def _just_lost(self) -> bool:
        last = self.loop.jobs.newest("train")
        return last is not None and last["state"] == "lost" and self.loop.clock() - last["ended_at"] < _LOST_SECONDS

    def due(self) -> str | None:
        """Why a training should start now, or None."""
        jobs: Jobs = self.loop.jobs
        last = jobs.newest("train", states=("running", "done", "error", "stopped"))
        since = (last["started_at"] or last["queued_at"]) if last else None
        return self.policy.due(
            Counts(
                new_slices=jobs.new_slices(),
                round_done=self.loop.round_done_since(since or 0.0),
                seconds_since_training=None if since is None else self.loop.clock() - since,
                training=bool(jobs.active("train")),
                heads_wanted=self._heads_wanted(since or 0.0),
            )
        )

    def _heads_wanted(self, since: float) -> list[str]:
        """Strategies that wait for a head; weights that a person went back to, or sent, are left in use as they are."""
        trained = self.loop.jobs.newest("train", states=("done",))
        if trained is None or trained["result"]["digest"] != self.loop.current_model():
            return []
        return self.loop.stood_in_for(since)

    def _plan_if_due(self) -> None:
        if self.loop.jobs.active("sweep"):
            return
        training = bool(self.loop.jobs.active("train"))
        # A training publishes further members after the first weights: whoever lets them vote waits for all.
        served, newest = self.loop.served(), self.loop.newest_rounds()
        waiting = [name for name in served if training and self.loop.strategy(name).needs_members > 1]
        stale = [name for name in served if name not in waiting and self._is_stale(newest.get(name))]
        if not stale:
            return
        state = self._state()
        fresh = [name for name in stale if self._worth_trying(name, state)]
        for name in fresh:
            self._tried[name] = (state, time.monotonic())
        here = [name for name in fresh if self._can_plan_here(name)]
        for name in here:
            self._plan_here(name)
        rest = [name for name in fresh if name not in here]
        if not rest:
            return
        why = "the last round is done or its model is not current"
        try:
            self.loop.jobs.queue("sweep", ",".join(rest), {"strategies": rest}, why)
        except Conflict:  # somebody asked for a sweep since the look above: what is stale after it has its turn then
            for name in rest:
                del self._tried[name]

    def _is_stale(self, newest: RowMapping | None) -> bool:
        if newest is None or newest["unit"] != self.loop.config.unit:
            return True
        if newest["model"] != self.loop.current_model():
            return True
        # A finished round waits for the training that it causes; without one, the next is chosen with the same model.
        return newest["state"] == "done" and not self.loop.jobs.active("train") and self.due() is None

    def _state(self) -> tuple[Any, ...]:
        counts = self.loop.catalogue.counts()
        keys = ("images", "slices", "labeled_slices", "skipped", "leased", "unreadable_images")
        return (self.loop.current_model(), *(counts[key] for key in keys))

    def _worth_trying(self, name: str, state: tuple[Any, ...]) -> bool:
        tried, at = self._tried.get(name, (None, 0.0))
        return tried != state or time.monotonic() - at > _RETRY_SECONDS

    def _can_plan_here(self, name: str) -> bool:
        strategy = self.loop.strategy(name)
        stood_in = strategy.needs_task_model and self.loop.current_model() is None
        return (stood_in or not strategy.needs) and self.loop.catalogue.counts()["slices"] <= _PLAN_HERE_SLICES

    def _plan_here(self, name: str) -> None:
        def no_signals(*_: object) -> Swept:
            raise AssertionError("a strategy planned within the server needs no signals")

        try:
            self.loop.plan(name, no_signals, model=self.loop.current_model())
        except (NextSliceError, ValueError):
            logger.exception("Planning %s failed", name)

    def want(self, name: str) -> None:
        """An annotator asks for a strategy: plan its first round, unless it had one or that is under way."""
        if name in self._had_a_round:
            return
        with self._guard:
            if name not in self.loop.newest_rounds():
                if any(name in job["request"]["strategies"] for job in self.loop.jobs.active("sweep")):
                    return
                if not self._can_plan_here(name):
                    self.loop.jobs.queue("sweep", name, {"strategies": [name]}, "first asked for", exclusive=False)
                    self._look_at_once()
                    return
                self._plan_here(name)
            self._had_a_round.add(name)

    # --- what is made for people to see

    def want_preview(self, image_id: str) -> None:
        """Somebody looks at an image that the current model has not predicted: it is, if that is done here at all."""
        if not self.loop.config.previews or self.loop.current_model() is None:
            return
        with self._guard:
            if image_id not in self._wanted:
                self._wanted.append(image_id)
        self.wake()

    def _preview_if_due(self) -> None:
        digest = self.loop.current_model()
        if not self.loop.config.previews or digest is None:
            return
        if self._busy() or self.loop.jobs.active("preview"):
            return
        if digest != self._previewing:
            # What somebody looked at with earlier weights is nobody's wish for these.
            self._previewing = digest
            self._wanted.clear()
        served = [row["id"] for row in self.loop.newest_rounds().values() if row["state"] == "open"]
        state = (digest, tuple(served), tuple(self._wanted))
        if self._previewed[0] == state and time.monotonic() - self._previewed[1] < _RETRY_SECONDS:
            return
        self._previewed = (state, time.monotonic())
        if previewing.due(self.loop, self._previews, digest, self._wanted):
            self.loop.jobs.queue("preview", model_name(self.loop.config), {"images": list(self._wanted)}, "to be seen")

    def _busy(self) -> bool:
        return bool(self.loop.jobs.active("train") or self.loop.jobs.active("sweep"))

    def _give_way(self) -> None:
        """What is made for people to see waits until a training or a sweep is over, and then is due again."""
        if any(kind in self._children for kind in GIVING_WAY) and self._busy():
            for kind in GIVING_WAY:
                self.stop(kind, "it gave way to a training or a sweep")
            self._previewed = ((), float("-inf"))

    # --- child processes

    def _training_begins(self) -> bool:
        """Whether a training comes next, which sees what the composite masks hold."""
        return "train" not in self._children and bool(self.loop.jobs.queued("train"))

    def _start_queued(self, kind: str) -> None:
        if kind in self._children:
            return
        gives_way = kind in GIVING_WAY
        if gives_way and (self._busy() or any(other in self._children for other in GIVING_WAY)):
            return
        if queued := self.loop.jobs.queued(kind):
            child = self._processes.Process(
                target=run_after_others if gives_way else run,
                args=(self.workplace, queued[0]["id"]),
                name=f"{kind}-{queued[0]['id'][:8]}",
            )
            child.start()
            self._children[kind] = (queued[0]["id"], child)
            threading.Thread(target=self._tell_end, args=(child,), daemon=True, name=f"end of {child.name}").start()

    def _tell_end(self, child: Any) -> None:
        connection.wait([child.sentinel])
        self._look_at_once()

    def _reap(self) -> None:
        for kind, (job_id, child) in list(self._children.items()):
            if not child.is_alive():
                child.join()
                del self._children[kind]
                self.loop.jobs.end(job_id, "error", message=f"the process ended with exit code {child.exitcode}")

    def stop(self, kind: str, why: str = "stopped on request") -> dict[str, Any] | None:
        """End the running job of a kind and drop the queued ones; the job, or None if there was none."""
        with self._guard:
            ended = self.loop.jobs.active(kind)
            for job in ended:
                self.loop.jobs.end(job["id"], "stopped", message=why)
            job_id, child = self._children.pop(kind, (None, None))
            if child is not None:
                child.kill()
                child.join(10)
        return self.loop.jobs.get(job_id or ended[0]["id"]) if ended else None

    def start_job(self, kind: str, name: str, request: dict[str, Any], *, enqueue: bool = False) -> dict[str, Any]:
        """Queue a job that a person asked for.

        Raises:
            Conflict: one of this kind is running and `enqueue` is not set.
        """
        if not enqueue and self.loop.jobs.active(kind):
            raise Conflict(f"A {kind} is running already; wait, stop it, or set enqueue.")
        job = self.loop.jobs.queue(kind, name, request, "asked for", exclusive=False)
        self._look_at_once()
        return job
