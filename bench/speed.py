"""Speed in one run: serving and an archive beside stock, a million slices, and the work on arrays beside plain ways.

`python -m bench.speed` prints tables with ratios. Ratios within one run are what to compare: milliseconds belong to the
machine, and to what else it does.
"""

import os
import platform
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from bench import archive_speed, million, selection_speed, serving, signal_speed, sweep_speed, training_speed
from bench.live import Effort, one_core
from trainers.settings import Settings

_TURNS = "; blocks of requests to each server in turns; median (min-max)."
_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


class Part(StrEnum):
    """What can be measured by itself."""

    serving = "serving"
    million = "million"
    sweep = "sweep"
    selection = "selection"
    signals = "signals"
    training = "training"
    archive = "archive"


def main(
    quick: Annotated[bool, typer.Option("--quick", help="smaller pools and fewer calls")] = False,
    only: Annotated[Part | None, typer.Option(help="one part instead of all")] = None,
    data: Annotated[
        Path, typer.Option(help="folder with hippocampus/ and acdc/; phantoms where they are not there")
    ] = _DATA,
) -> None:
    """Measure how fast NextSlice is, and print it."""
    parts: dict[Part, Callable[[Path, Path, bool], str]] = {
        Part.serving: _serving,
        Part.million: _million,
        Part.sweep: _sweep,
        Part.selection: _selection,
        Part.signals: _signals,
        Part.training: _training,
        Part.archive: _archive,
    }
    for part in [only] if only else list(parts):
        with tempfile.TemporaryDirectory(prefix="nextslice-speed-") as folder:
            tqdm.write(parts[part](data, Path(folder), quick))
    tqdm.write(f"\n{_machine()}")


def _effort(quick: bool) -> Effort:
    """Below 100 requests: the smallest pool has 100 images, and stock refuses once all were served within a second."""
    return Effort(blocks=2, calls=5, rounds=2) if quick else Effort(blocks=4, calls=5, rounds=5)


def _serving(data: Path, folder: Path, quick: bool) -> str:
    case = serving.Case.of(data, folder)
    with one_core() as where:
        found = serving.serve(case, (100, 1000) if quick else (100, 1000, 10_000), _effort(quick), folder)
    return f"{serving.report(found)}\n\nConditions: {where}{_TURNS}"


def _million(data: Path, folder: Path, quick: bool) -> str:
    with one_core() as where:
        found = million.measure(1000 if quick else 10_000, _effort(quick), folder)
    return f"{million.report(found)}\n\nConditions: {where}{_TURNS}"


def _sweep(data: Path, folder: Path, quick: bool) -> str:
    repeats = 3 if quick else 7
    with one_core() as where, sweep_speed.one_thread():
        found = [sweep_speed.compare(each, repeats) for each in sweep_speed.datasets(data, folder, quick=quick)]
    return (
        f"{sweep_speed.report(found)}\n\nConditions: {where}, one thread, so that nothing overlaps: reading ahead on another "
        "core only lowers the ratio.\nThe three in turns; median (min-max) of the ratios."
    )


def _selection(data: Path, folder: Path, quick: bool) -> str:
    with one_core() as where:
        found = selection_speed.report(quick=quick)
    return f"{found}\n\nConditions: {where}, one thread; float32, 50 Gaussian clusters; in turns, median (min-max)."


def _signals(data: Path, folder: Path, quick: bool) -> str:
    slices, repeats = (64, 2) if quick else (256, 5)
    with one_core() as where, sweep_speed.one_thread():
        found = signal_speed.compare(sweep_speed.datasets(data, folder, quick=quick)[0], slices, repeats)
    return (
        f"{signal_speed.report(found)}\n\nConditions: {where}, one thread; the same inputs for all, equal results checked.\n"
        "The ways of each thing in turns; median (min-max) of the ratios."
    )


def _training(data: Path, folder: Path, quick: bool) -> str:
    epochs, repeats = (1, 2) if quick else (4, 5)
    settings = Settings(epochs=epochs, steps_per_epoch=25, batch_size=8, learning_rate=1e-2, seed=0)
    with one_core() as where, sweep_speed.one_thread():
        found = [
            training_speed.compare(each, settings, repeats) for each in sweep_speed.datasets(data, folder, quick=quick)
        ]
    return (
        f"{training_speed.report(found)}\n\nConditions: {where}, one thread; {epochs} epochs of 25 steps of 8 slices, with "
        "augmentation, validation and a model's measures;\nevery third slice annotated; in turns, median (min-max)."
    )


def _archive(data: Path, folder: Path, quick: bool) -> str:
    with one_core() as where:
        found = archive_speed.report(folder, archive_speed.QUICK if quick else archive_speed.FULL)
    return f"{found}\n\nConditions: {where}, Orthanc too; starts and requests in turns; median (min-max)."


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = f", load average now {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Machine: {platform.machine()}, {os.cpu_count()} cores{load}, {device}; Python {platform.python_version()}, "
        f"torch {torch.__version__}.\nThe machine may be doing other work: compare the ratios, not the milliseconds."
    )


if __name__ == "__main__":
    typer.run(main)
