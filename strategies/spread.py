"""The same number from every volume, evenly spaced: a baseline that needs no model and is hard to beat."""

import heapq
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop.pool import Pool
from loop.signals import FloatArray
from strategies._base import Selection, Signals, Strategy

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread(Strategy):
    """Volumes in turn, those with the fewest labelled slices first; inside a volume, evenly spaced along the slice axis.

    New slices of a volume that has labelled ones are spread over the gaps between them. Which volumes come first among
    equals is drawn by the seed; everything else is deterministic.
    """

    name = "spread"
    asks_for = "evenly spread over volumes and slices"
    source = "arXiv 2412.08081"

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        rows_of = _by_volume(pool)
        free = ~(pool.labeled | pool.held)
        free_of = {volume: rows[free[rows]] for volume, rows in rows_of.items()}
        turns = _deal(pool, {volume: len(free) for volume, free in free_of.items() if len(free)}, k, rng)
        picks = {
            volume: iter(_spaced(pool.position, rows_of[volume], free_of[volume], pool.labeled, n))
            for volume, n in Counter(turns).items()
        }
        rows = np.array([next(picks[volume]) for volume in turns], np.int64)
        return Selection(rows, np.linspace(1, 0, k, endpoint=False))


def _by_volume(pool: Pool) -> dict[int, IntArray]:
    """{volume: its rows}."""
    order = np.argsort(pool.volume, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(pool.volume[order])) + 1)
    return {int(pool.volume[part[0]]): part for part in parts}


def _deal(pool: Pool, room: dict[int, int], k: int, rng: np.random.Generator) -> list[int]:
    """k volume numbers, one at a time to the volume with the fewest labelled and dealt; ties in a seeded fixed order."""
    labeled = np.bincount(pool.volume[pool.labeled], minlength=int(pool.volume.max()) + 1)
    volumes = rng.permutation(np.fromiter(room, np.int64)).tolist()
    heap = [(int(labeled[volume]), order, volume) for order, volume in enumerate(volumes)]
    heapq.heapify(heap)
    left = dict(room)
    turns: list[int] = []
    while len(turns) < k:
        have, order, volume = heapq.heappop(heap)
        turns.append(volume)
        left[volume] -= 1
        if left[volume]:
            heapq.heappush(heap, (have + 1, order, volume))
    return turns


@dataclass
class _Gap:
    """A stretch without labelled slices; an open end is the volume's edge, where half a spacing is enough."""

    low: float
    high: float
    open_low: bool
    open_high: bool
    points: int = 0

    @property
    def spacing(self) -> float:
        parts = self.points + 1 - (self.open_low + self.open_high) / 2
        return (self.high - self.low) / parts if parts else np.inf

    def places(self) -> FloatArray:
        return self.low + self.spacing * (np.arange(self.points) + (0.5 if self.open_low else 1.0))


def _spaced(position: IntArray, rows: IntArray, free: IntArray, labeled: npt.NDArray[np.bool_], n: int) -> list[int]:
    """n of a volume's free rows, evenly spaced in the gaps that its labelled slices leave, widest gaps first served."""
    edges = [position[rows].min() - 0.5, *np.sort(position[rows[labeled[rows]]]), position[rows].max() + 0.5]
    last = len(edges) - 2
    gaps = [_Gap(float(edges[i]), float(edges[i + 1]), i == 0, i == last) for i in range(last + 1)]
    for _ in range(n):
        max(gaps, key=lambda gap: gap.spacing).points += 1
    left = free[np.argsort(position[free], kind="stable")].tolist()
    chosen = []
    for wanted in np.concatenate([gap.places() for gap in gaps]):
        nearest = min(left, key=lambda row: abs(position[row] - wanted))
        chosen.append(nearest)
        left.remove(nearest)
    return chosen
