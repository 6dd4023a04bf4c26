"""How fast the engine trains, beside the bare steps that it cannot do without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import models
from bench.sweep_speed import Data as Volumes
from bench.sweep_speed import Seconds
from bench.tables import median_of, table
from datastore.volume_io import read_volume
from infers.engine import pick_device
from loop.allocation import keep_freed_memory
from models.spec import ModelSpec
from trainers.batches import batches
from trainers.data import Case, Data, load
from trainers.engine import train
from trainers.losses import partial_dice_ce
from trainers.precision import Precision
from trainers.settings import Settings
from trainers.steps import descend

_AXIS = 2
_READY = 8
"""Batches that the bare steps go round: no longer in a processor's caches when they come again."""

_VALIDATION_EVERY = 5


@dataclass
class Trained:
    """What as many steps took: with the engine, bare, and reading the cases before."""

    name: str
    slices: int
    shape: tuple[int, ...]
    bare: Seconds = field(default_factory=Seconds)
    full: Seconds = field(default_factory=Seconds)
    reading: Seconds = field(default_factory=Seconds)

    def row(self) -> list[str]:
        """For the report; ratios are of neighbouring repeats, so that what slows the machine slows both."""
        ratios = [bare / full for bare, full in zip(self.bare.clock, self.full.clock, strict=True)]
        shares = [reading / full for reading, full in zip(self.reading.clock, self.full.clock, strict=True)]
        return [
            self.name,
            "x".join(map(str, self.shape)),
            median_of([self.slices / seconds for seconds in self.bare.clock]),
            median_of([self.slices / seconds for seconds in self.full.clock]),
            median_of(ratios),
            median_of([100 * share for share in shares]),
        ]


def compare(volumes: Volumes, settings: Settings, repeats: int) -> Trained:
    """Time them in turns, after one turn that does not count. Every third slice is annotated, as in a session."""
    keep_freed_memory()  # as the process that trains does
    spec, device = models.get("unet2d", labels=volumes.labels), pick_device("auto")
    cases = [
        Case(file.name, file, file.parent.parent / "labels" / file.name, _AXIS, slices, split)
        for number, file in enumerate(volumes.files)
        for slices in [_annotated(file)]
        for split in ["training" if number % _VALIDATION_EVERY else "validation"]
    ]
    data = load(spec, cases)
    steps = settings.epochs * settings.steps_per_epoch
    ready = [batch.on(device) for batch in islice(batches(spec, data.training, settings.batch_size, 0), _READY)]
    found = Trained(volumes.name, steps * settings.batch_size, tuple(ready[0][0].shape))
    parts: list[tuple[Seconds, Callable[[], None]]] = [
        (found.bare, lambda: _bare(spec, ready, steps, device)),
        (found.full, lambda: _engine(spec, data, settings, device)),
        (found.reading, lambda: _reading(spec, cases)),
    ]
    for turn in tqdm(range(repeats + 1), desc=f"train, {volumes.name}", unit="turn", leave=False, disable=None):
        for seconds, run in parts:
            (seconds if turn else Seconds()).take(run)
    return found


def _annotated(file: Path) -> Sequence[int]:
    return range(0, read_volume(file).array.shape[_AXIS], 3)


def _engine(spec: ModelSpec, data: Data, settings: Settings, device: torch.device) -> None:
    train(spec, data, settings, device=device)


def _reading(spec: ModelSpec, cases: Sequence[Case]) -> None:
    load(spec, cases)


def _bare(spec: ModelSpec, ready: Sequence[tuple[Tensor, Tensor]], steps: int, device: torch.device) -> None:
    """Forward, loss, backward and optimiser step of the same network on batches that are there already."""
    precision = Precision.of(device, "auto")
    network = spec.network(0).to(device).train()
    optimiser, scaler = torch.optim.AdamW(network.parameters()), precision.scaler()
    for step in range(steps):
        data, target = ready[step % len(ready)]
        with precision.autocast():
            loss = partial_dice_ce(network(data), target)
        descend(optimiser, scaler, loss)


def report(found: Sequence[Trained]) -> str:
    """One row a data set."""
    return table(
        "Training: the engine beside bare steps on ready batches (unet2d, AdamW)",
        ["data", "batch", "bare, slices/s", "engine, slices/s", "engine / bare", "reading the cases, % of it"],
        [trained.row() for trained in found],
    )
