"""One training by several processes, a GPU each: DistributedDataParallel on one machine."""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loop.errors import BadInput, NextSliceError
from loop.forking import fork_context
from loop.parent import end_with_parent
from models.spec import ModelSpec
from trainers import engine
from trainers.data import Data, Loaded
from trainers.descent import OutOfMemory
from trainers.engine import Trained
from trainers.ranks import Ranks
from trainers.settings import Settings

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(hours=2)
"""Longest wait for another process: the first one validates while the others do."""

_LAST_WORDS_SECONDS = 2.0


def devices_for(device: torch.device, gpus: str) -> list[torch.device]:
    """Where the processes of a training compute: on `gpus` CUDA devices, or ("auto") all; on the CPU, `gpus` processes.

    Raises:
        BadInput: more than there are, or `device` is one certain GPU and `gpus` wants several.
    """
    if gpus == "1" or (gpus == "auto" and (device.type == "cpu" or device.index is not None)):
        return [device]
    if device.type == "cpu":
        return [device] * int(gpus)
    if device.index is not None:
        raise BadInput(f"device {device} is one GPU, and gpus asks for {gpus}: set device to cuda, or gpus to 1.")
    there = torch.cuda.device_count()
    count = there if gpus == "auto" else int(gpus)
    if count > there:
        raise BadInput(f"gpus asks for {count}, this machine has {there}.")
    return [torch.device("cuda", index) for index in range(count)]


@dataclass(frozen=True)
class _Task:
    """What every process gets; tensors lie in the folder, where all map the same pages."""

    folder: Path
    spec: ModelSpec
    settings: Settings
    heads: Sequence[str]
    devices: Sequence[torch.device]


def train(
    spec: ModelSpec,
    data: Data,
    settings: Settings,
    *,
    devices: Sequence[torch.device],
    start: Mapping[str, Tensor] | None = None,
    heads: Sequence[str] = (),
    report: Callable[..., None] = lambda **progress: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Trained:
    """As `engine.train`, by one process for each device; here and now for one device.

    The batch is the same as with one process and is dealt out evenly, so that fewer devices are used where their number
    does not divide it. The first process validates and reports.

    Raises:
        NextSliceError: a process was lost. Besides what `engine.train` raises.
    """
    count = max(n for n in range(1, len(devices) + 1) if settings.batch_size % n == 0)
    if count < len(devices):
        warn(f"A batch of {settings.batch_size} is dealt out evenly: {count} of {len(devices)} devices are used.")
    if count == 1:
        return engine.train(spec, data, settings, device=devices[0], start=start, heads=heads, report=report, warn=warn)
    while True:
        try:
            with tempfile.TemporaryDirectory(prefix="nextslice-ranks-") as folder:
                task = _Task(Path(folder), spec, settings, heads, devices[:count])
                torch.save(
                    {
                        "training": [vars(loaded) for loaded in data.training],
                        "validation": [vars(loaded) for loaded in data.validation],
                        "start": None if start is None else dict(start),
                    },
                    task.folder / "task.pt",
                )
                return _Processes(task, report, warn).result()
        except OutOfMemory as error:
            if settings.parts >= settings.batch_size // count:
                raise
            settings = replace(settings, parts=2 * settings.parts)
            warn(f"{error} The training starts again with each device's share in {settings.parts} parts.")


class _Processes:
    """The processes of one training, and what they say."""

    def __init__(self, task: _Task, report: Callable[..., None], warn: Callable[[str], None]) -> None:
        self._task, self._report, self._warn = task, report, warn
        self._done: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        # Not forked from here: CUDA does not survive a fork, and the fork server has none.
        context = fork_context()
        self._running: dict[int, tuple[Any, Connection]] = {}
        for rank in range(len(task.devices)):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(task, rank, there), name=f"train-rank-{rank}")
            process.start()
            there.close()
            self._running[rank] = (process, here)

    def result(self) -> Trained:
        """Wait for all of them."""
        try:
            while self._running:
                ready = wait([part for process, pipe in self._running.values() for part in (process.sentinel, pipe)])
                for rank, (process, pipe) in list(self._running.items()):
                    if pipe in ready or process.sentinel in ready:
                        self._listen(pipe)
                    if process.sentinel in ready:
                        self._ended(rank)
        finally:
            for process, pipe in self._running.values():
                process.kill()
                process.join()
                pipe.close()
        if self._done is None:
            raise NextSliceError("The processes of the training ended without a result.")
        weights = torch.load(self._task.folder / "weights.pt", weights_only=True)
        return Trained(weights, *self._done)

    def _listen(self, pipe: Connection) -> None:
        try:
            while pipe.poll():
                kind, content = pipe.recv()
                self._hear(kind, content)
        except (EOFError, OSError):
            return

    def _hear(self, kind: str, content: Any) -> None:
        if kind == "report":
            self._report(**content)
        elif kind == "warn":
            self._warn(content)
        elif kind == "done":
            self._done = content
        else:
            raise {"memory": OutOfMemory, "input": BadInput}[kind](content)

    def _ended(self, rank: int) -> None:
        process, pipe = self._running[rank]
        process.join()
        if process.exitcode:
            # A process that loses another fails too: who was killed is the cause.
            wait([other.sentinel for other, _ in self._running.values() if other is not process], _LAST_WORDS_SECONDS)
            failed = {n: each.exitcode for n, (each, _) in self._running.items() if each.exitcode}
            lost = min(failed, key=lambda n: (failed[n] > 0, n))
            raise NextSliceError(
                f"Process {lost + 1} of the training's {len(self._task.devices)} ended with exit code {failed[lost]}; "
                "the others were stopped, and the published model is as it was. The server's log may say why."
            )
        pipe.close()
        del self._running[rank]


def _run(task: _Task, rank: int, pipe: Connection) -> None:
    """A process's main function."""
    end_with_parent()
    device, count = task.devices[rank], len(task.devices)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        ranks = Ranks(device, rank, count)
        open_group(ranks, f"file://{task.folder / 'rendezvous'}")
        trained = _train(task, ranks, pipe)
        torch.distributed.barrier()
    except OutOfMemory as error:
        _give_up(pipe, "memory", str(error))
    except NextSliceError as error:
        _give_up(pipe, "input", str(error))
    except Exception:
        logger.exception("Process %s of the training failed", rank + 1)
        _give_up(pipe)
    if rank == 0:
        torch.save(dict(trained.weights), task.folder / "weights.pt")
        pipe.send(("done", (trained.metrics, trained.curve)))
    torch.distributed.destroy_process_group()


def _give_up(pipe: Connection, *message: str) -> None:
    """At once: leaving a process group in order would wait for the others."""
    if message:
        pipe.send(message)
    pipe.close()
    logging.shutdown()
    os._exit(1)


def open_group(ranks: Ranks, rendezvous: str) -> None:
    """Join the other processes: by NCCL on GPUs, by gloo on the CPU.

    Args:
        rendezvous: where they meet, as `torch.distributed.init_process_group` takes it.
    """
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=rendezvous, rank=ranks.rank, world_size=ranks.count, timeout=_TIMEOUT
    )


def _train(task: _Task, ranks: Ranks, pipe: Connection) -> Trained:
    found = torch.load(task.folder / "task.pt", weights_only=True, mmap=True)
    data = Data(*([Loaded(**facts) for facts in found[split]] for split in ("training", "validation")))

    def say(kind: str, content: Any) -> None:
        if ranks.first:
            pipe.send((kind, content))

    return engine.train(
        task.spec,
        data,
        task.settings,
        device=ranks.device,
        start=found["start"],
        heads=task.heads,
        report=lambda **progress: say("report", progress),
        warn=lambda text: say("warn", text),
        ranks=ranks,
    )
