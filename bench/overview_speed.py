"""What the pages ask of the store, with a small pool and with large ones: `python -m bench.overview_speed`."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer

from bench.tables import table
from loop.catalogue import Found
from loop.config import AppConfig
from loop.pool import Pool
from loop.rounds import Loop, Swept
from loop.store import Store
from loop.submitted import Submission
from strategies import Need

_REPEATS = 15
_ANNOTATORS = 20
_BUDGET = 1000


def main(labels: int = 500) -> None:
    """Pools of ten thousand and of a million slices, in volumes and as images of one slice; the same number of labels in each."""
    pools = ((100, 100), (10_000, 100), (1_000_000, 1))
    columns = [_measured(images, slices, labels) for images, slices in pools]
    rows = [[name, *(f"{column[name]:.1f}" for column in columns)] for name in columns[0]]
    header = ["ms, median", *(f"{images:,} images of {slices}" for images, slices in pools)]
    typer.echo(table(f"What the pages ask, {labels} labels in each pool", header, rows))


def _measured(images: int, slices: int, n_labels: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'store.sqlite'}")
        try:
            loop = Loop(store, AppConfig(budget=_BUDGET, cold_start="random", slices_per_ticket=1))
            loop.catalogue.sync([_image(n, slices) for n in range(images)], [], 0.0)
            _label(loop, images, slices, n_labels)
            number = loop.plan("random", _nothing, model=None)
            assert number is not None
            now = loop.clock()
            asked: dict[str, Callable[[], object]] = {
                "counts": loop.catalogue.counts,
                "open rounds": lambda: loop.rounds(20, state="open"),
                "rounds": lambda: loop.rounds(8),
                "new slices": loop.jobs.new_slices,
                "annotators": loop.overview.annotators,
                "last labels": lambda: loop.overview.submissions(8),
                "worklist, first page": lambda: loop.overview.worklist(number, now, limit=24),
                "worklist, counts": lambda: loop.overview.round_counts(number, now),
                "worklist of one image": lambda: loop.overview.worklist(number, now, image="image00000", limit=24),
            }
            first = {f"{name}, the first time": _ms(asked[name], 1) for name in ("counts", "annotators")}
            return {**first, **{name: _ms(call, _REPEATS) for name, call in asked.items()}}
        finally:
            store.close()


def _image(n: int, slices: int) -> Found:
    name = f"image{n:07}"
    affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    return Found(name, f"{name}.nii.gz", "1-1", (16, 16, slices), (1.0, 1.0, 3.0), affine)


def _label(loop: Loop, images: int, slices: int, n_labels: int) -> None:
    rng = np.random.default_rng(0)
    for n in range(n_labels):
        image, index = int(rng.integers(images)), int(rng.integers(slices))
        by = f"annotator {n % _ANNOTATORS}"
        loop.tell(f"image{image:07}", Submission(by, "digest", "file", [index], None, {}))


def _nothing(pool: Pool, needs: tuple[Need, ...]) -> Swept:
    return Swept({}, np.zeros(len(pool), bool))


def _ms(call: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


if __name__ == "__main__":
    typer.run(main)
