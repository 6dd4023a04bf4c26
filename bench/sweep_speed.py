"""How much a sweep costs beside the forward passes that it cannot do without."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import models
import strategies
from bench.phantom import LABELS, write_phantoms
from bench.tables import median_of, table
from datastore.volume_io import read_volume
from infers.engine import PoolViews, Segmenter, Source, pick_device
from loop.allocation import keep_freed_memory
from loop.pool import IntArray, ItemTable, Pool
from loop.signals import Signal, sweep
from models.preprocess import Prepared, prepare

_STRATEGIES = ("max_entropy", "margin", "least_confidence", "foreground_random")
_AXIS = 2
"""The slice axis of all the data here, which the catalogue finds by itself."""


@dataclass(frozen=True)
class Data:
    """Volumes on disk."""

    name: str
    labels: tuple[str, ...]
    files: Sequence[Path]


def datasets(data: Path, folder: Path, *, quick: bool) -> list[Data]:
    """Hippocampus and ACDC where they are there, else phantoms."""
    known = (
        ("hippocampus", ("anterior", "posterior"), 20 if quick else 100),
        ("acdc", ("right ventricle", "myocardium", "left ventricle"), 5 if quick else 20),
    )
    found = [
        Data(name, labels, sorted((data / name / "images").glob("*.nii.gz"))[:n])
        for name, labels, n in known
        if (data / name / "images").is_dir()
    ]
    if not found:
        ids = write_phantoms(folder / "phantoms", patients=20 if quick else 100)
        found = [Data("phantoms", LABELS, [folder / "phantoms" / "images" / f"{name}.nii.gz" for name in ids])]
    return found


@dataclass
class Seconds:
    """Of each repeat: on the clock, and of this process's CPU."""

    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, run: Callable[[], None]) -> None:
        """Time a run."""
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clock.append(time.perf_counter() - clock)
        self.cpu.append(time.process_time() - cpu)


@dataclass
class Swept:
    """What a sweep took, and its parts.

    Attributes:
        bare: the forward passes alone, on tensors that were read and preprocessed before.
        reduced: the same and the signals' reductions, still on ready tensors.
        full: the sweep, from files to signals.
    """

    data: Data
    slices: int
    bare: Seconds = field(default_factory=Seconds)
    reduced: Seconds = field(default_factory=Seconds)
    full: Seconds = field(default_factory=Seconds)

    def row(self) -> list[str]:
        """For the report; ratios are of neighbouring repeats, so that what slows the machine slows both."""
        per_slice = [1000 * seconds / self.slices for seconds in self.bare.clock]
        ratios = [
            [a / b for a, b in zip(above, below, strict=True)]
            for above, below in (
                (self.reduced.clock, self.bare.clock),
                (self.full.clock, self.bare.clock),
                (self.full.cpu, self.bare.cpu),
            )
        ]
        return [
            self.data.name,
            str(len(self.data.files)),
            str(self.slices),
            median_of(per_slice),
            *map(median_of, ratios),
        ]


def compare(data: Data, repeats: int) -> Swept:
    """Time the three in turns, after one turn that does not count."""
    keep_freed_memory()  # as the process that sweeps does
    spec = models.get("unet2d", labels=data.labels)
    segmenter = Segmenter(spec, None, device=pick_device("auto"))
    signals = [signal for name in _STRATEGIES for signal in strategies.get(name).needs]
    ready = [_prepared(segmenter, file) for file in data.files]
    pool = _pool([len(prepared.data) for prepared in ready])
    batches = [part for prepared in ready for part in prepared.data.to(segmenter.device).split(segmenter.batch)]
    found = Swept(data, len(pool))
    parts: list[tuple[Seconds, Callable[[], None]]] = [
        (found.bare, lambda: _bare(segmenter, batches)),
        (found.reduced, lambda: _reduced(segmenter, batches, signals)),
        (found.full, lambda: _full(segmenter, pool, data.files, signals)),
    ]
    for turn in tqdm(range(repeats + 1), desc=f"sweep, {data.name}", unit="turn", leave=False, disable=None):
        for seconds, run in parts:
            (seconds if turn else Seconds()).take(run)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """torch in one thread: several that share cores with other work wait for each other and measure that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepared(segmenter: Segmenter, file: Path) -> Prepared:
    volume = read_volume(file)
    return prepare(segmenter.spec, volume.array, volume.spacing, _AXIS)


def _pool(lengths: Sequence[int]) -> Pool:
    """All slices of volumes of these lengths, nothing labelled."""
    volume = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    no = np.zeros(len(volume), bool)
    items = ItemTable([str(number) for number in range(len(lengths))], volume, position)
    return Pool(items, no, no, volume, volume, position)


def _bare(segmenter: Segmenter, batches: Sequence[Tensor]) -> None:
    for batch in batches:
        segmenter.probabilities(batch)


def _reduced(segmenter: Segmenter, batches: Sequence[Tensor], signals: Sequence[Signal]) -> None:
    for batch in batches:
        probs = segmenter.probabilities(batch)
        for signal in signals:
            signal.reduce(probs).float().cpu()


def _full(segmenter: Segmenter, pool: Pool, files: Sequence[Path], signals: Sequence[Signal]) -> None:
    kept: list[IntArray] = []

    def unreadable(image_id: str, reason: str) -> None:
        raise RuntimeError(f"{files[int(image_id)]}: {reason}")

    sources = [Source(str(number), file, _AXIS) for number, file in enumerate(files)]
    views = PoolViews(segmenter, pool, sources, unreadable=unreadable)
    sweep(views, signals, np.arange(len(pool)), lambda rows, values: kept.append(rows))
    if sum(map(len, kept)) != len(pool):
        raise RuntimeError(f"The sweep gave {sum(map(len, kept))} of {len(pool)} slices.")


def report(found: Sequence[Swept]) -> str:
    """One row a data set."""
    return table(
        f"Sweep: {', '.join(_STRATEGIES)} at once, as a ratio to the bare forward passes (unet2d)",
        ["data", "volumes", "slices", "bare, ms a slice", "with reductions", "full sweep", "full sweep, CPU time"],
        [swept.row() for swept in found],
    )
