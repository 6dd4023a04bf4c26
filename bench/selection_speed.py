"""How long the selection itself takes, beside what it cannot do without and beside what peers do."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import pairwise_distances
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from bench.tables import median_of, ratio_of, table, times
from loop.signals import FloatArray
from strategies._kcenter import k_center_greedy
from strategies._kmeanspp import kmeans_pp
from strategies._similarity import similarity_kernel
from strategies._submodular import facility_location_mutual_information

_BUDGET = 100
_LABELED = 100
_PAPER = (104_133, 6606)
"""Candidates and queries of the largest round in the USIM paper."""

_Runs = Mapping[str, Callable[[], object]]
_Seconds = dict[str, list[float]]


def report(*, quick: bool) -> str:
    """All tables of the selection, one thread."""
    sizes = (1000,) if quick else (1000, 10_000, 100_000)
    with threadpool_limits(1):
        return "\n".join([_k_center(sizes), _kmeans_pp(sizes), *_mutual_information(quick=quick)])


def clusters(rows: int, axes: int) -> FloatArray:
    """(rows, axes) float32 of 50 Gaussian clusters, always the same."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, axes), np.float32)
    features = rng.standard_normal((rows, axes), np.float32)
    features += centres[rng.integers(50, size=rows)]
    return features


def _race(runs: _Runs, turns: int, title: str, once: Sequence[str] = ()) -> _Seconds:
    """Seconds of each, in turns after one that does not count; those named in `once` run in the last turn only."""
    found: _Seconds = {name: [] for name in runs}
    for turn in tqdm(range(turns + 1), desc=title, unit="turn", leave=False, disable=None):
        for name, run in runs.items():
            if name not in once or turn == turns:
                began = time.perf_counter()
                run()
                if turn:
                    found[name].append(time.perf_counter() - began)
    return found


def _row(name: str, seconds: _Seconds) -> list[str]:
    """The floor and ours in milliseconds, and everything as a ratio to the floor."""
    floor, *others = seconds.values()
    ms = [median_of([1000 * each for each in values]) for values in (floor, others[0])]
    return [name, *ms, *(times(ratio_of(values, floor)) for values in others)]


def _turns(rows: int) -> int:
    return 15 if rows < 10_000 else 5 if rows < 100_000 else 3


def _k_center(sizes: Sequence[int]) -> str:
    found = []
    for rows in sizes:
        features, labeled = clusters(rows, 512), np.arange(rows) < _LABELED
        runs: _Runs = {
            "floor": partial(_products, features),
            "ours": partial(k_center_greedy, features, _BUDGET, labeled=labeled, rng=np.random.default_rng(0)),
            "plain": partial(_plain_k_center, features, labeled),
            "sklearn": partial(_sklearn_k_center, features, labeled),
        }
        once = ["sklearn"] if rows >= 100_000 else []
        found.append(_row(f"{rows} x 512", _race(runs, _turns(rows), f"k-centre, {rows} rows", once)))
    return table(
        f"k-centre greedy: {_BUDGET} picks, {_LABELED} labelled, against {_BUDGET} matrix-vector products (the floor)",
        ["rows", "floor, ms", "ours, ms", "ours", "plain numpy", "scikit-learn distances"],
        found,
    )


def _kmeans_pp(sizes: Sequence[int]) -> str:
    found = []
    for rows in sizes:
        features = clusters(rows, 1664)
        runs: _Runs = {
            "floor": partial(_products, features),
            "ours": partial(kmeans_pp, features, _BUDGET, np.random.default_rng(0), first="random"),
            "trials": partial(kmeans_pp, features, _BUDGET, np.random.default_rng(0), first="random", local_trials=6),
            "plain": partial(_plain_kmeans_pp, features),
            "sklearn": partial(kmeans_plusplus, features, _BUDGET, random_state=0),
        }
        once = ["sklearn"] if rows >= 100_000 else []
        found.append(_row(f"{rows} x 1664", _race(runs, _turns(rows), f"k-means++, {rows} rows", once)))
    return table(
        f"k-means++ seeding: {_BUDGET} picks, against {_BUDGET} matrix-vector products (the floor)",
        ["rows", "floor, ms", "ours, ms", "ours", "ours, 6 trials", "plain numpy", "scikit-learn, 6 trials"],
        found,
    )


def _mutual_information(*, quick: bool) -> list[str]:
    candidates, queries = (2000, 500) if quick else (20_000, 2000)
    features = clusters(candidates, 512)
    kernel = similarity_kernel(features, features[_drawn(candidates, queries)])
    values: dict[str, float] = {}

    def run(backend: str) -> None:
        _, gains = facility_location_mutual_information(kernel, _BUDGET, backend=backend)  # type: ignore[arg-type]
        values[backend] = float(gains.sum())

    runs: _Runs = {"read": kernel.max, "exact": lambda: run("exact"), "submodlib": lambda: run("submodlib")}
    seconds = _race(runs, 3, "mutual information")
    compared = table(
        f"Facility-location mutual information: {_BUDGET} picks, {candidates} x {queries} kernel given",
        ["backend", "seconds", "reads of the kernel", "value", "slower"],
        [
            [
                name,
                median_of(seconds[name]),
                times(ratio_of(seconds[name], seconds["read"])),
                f"{values[name]:.4f}",
                times(ratio_of(seconds[name], seconds["exact"])),
            ]
            for name in ("exact", "submodlib")
        ],
    )
    size = (5000, 500) if quick else _PAPER
    # In a process of its own: the peak of memory is then this alone.
    answer = subprocess.run(
        [sys.executable, "-m", "bench.selection_speed", *map(str, size)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    paper = json.loads(answer.stdout)
    alone = table(
        f"The same, exact, in a process of its own: {size[0]} x {size[1]}, features of 512 columns",
        ["kernel, s", "selection, s", "reads of the kernel", "value", "peak memory, GB"],
        [
            [
                f"{paper['kernel']:.1f}",
                f"{paper['selection']:.2f}",
                times(paper["selection"] / paper["read"]),
                f"{paper['value']:.2f}",
                f"{paper['gigabytes']:.2f}",
            ]
        ],
    )
    return [compared, alone]


def _alone(candidates: int, queries: int) -> dict[str, float]:
    """Seconds, value and peak memory of kernel and selection at one size."""
    features = clusters(candidates, 512)
    facility_location_mutual_information(np.ones((2, 2), np.float32), 1)
    marks = [time.perf_counter()]
    kernel = similarity_kernel(features, features[_drawn(candidates, queries)])
    marks.append(time.perf_counter())
    _, gains = facility_location_mutual_information(kernel, _BUDGET)
    marks.append(time.perf_counter())
    kernel.max()
    marks.append(time.perf_counter())
    kernel_s, selection_s, read_s = (float(each) for each in np.diff(marks))
    return {
        "kernel": kernel_s,
        "selection": selection_s,
        "read": read_s,
        "value": float(gains.sum()),
        "gigabytes": _peak_gigabytes(),
    }


def _peak_gigabytes() -> float:
    """Of this process since it began; where the system does not say, NaN.

    `ru_maxrss` would count the parent's memory at the moment of the fork.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), float("nan"))


def _drawn(candidates: int, queries: int) -> np.ndarray:
    return np.random.default_rng(1).integers(candidates, size=queries)


def _products(features: FloatArray) -> None:
    for row in range(_BUDGET):
        features @ features[row]


def _plain_k_center(features: FloatArray, labeled: np.ndarray) -> list[int]:
    """The few lines that one would write: no care for cancellation, duplicates or ties."""
    squares = np.einsum("nd,nd->n", features, features)
    centres = features[labeled]
    nearest = (squares[:, None] - 2 * features @ centres.T + squares[labeled]).min(axis=1)
    picked = []
    for _ in range(_BUDGET):
        picked.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, squares - 2 * features @ features[picked[-1]] + squares[picked[-1]])
    return picked


def _sklearn_k_center(features: FloatArray, labeled: np.ndarray) -> list[int]:
    """As active-learning libraries do: scikit-learn's distances to each new centre."""
    nearest = pairwise_distances(features, features[labeled]).min(axis=1)
    picked = []
    for _ in range(_BUDGET):
        picked.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, pairwise_distances(features, features[picked[-1:]])[:, 0])
    return picked


def _plain_kmeans_pp(features: FloatArray) -> list[int]:
    rng = np.random.default_rng(0)
    squares = np.einsum("nd,nd->n", features, features)
    picked = [int(rng.integers(len(features)))]
    nearest = np.full(len(features), np.inf, np.float32)
    for _ in range(_BUDGET - 1):
        nearest = np.minimum(nearest, squares - 2 * features @ features[picked[-1]] + squares[picked[-1]])
        weights = np.maximum(nearest, 0).cumsum(dtype=np.float64)
        picked.append(int(np.searchsorted(weights, rng.random() * weights[-1])))
    return picked


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_alone(int(sys.argv[1]), int(sys.argv[2]))))
