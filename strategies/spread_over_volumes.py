"""Any strategy, with few items of one volume."""

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from loop.pool import Pool
from loop.signals import Signal
from strategies._base import Need, Selection, Signals, Strategy, parameter


@dataclass(frozen=True)
class SpreadOverVolumes(Strategy):
    """Wrapper: at most m items of one volume a batch.

    The wrapped strategy selects; of what it selects, in its order, a volume's first m stay. For what is still wanted it
    selects again, with those counted as labelled and full volumes left out. When every volume is full, each may give m more.
    Where no volume would give more than m, the answer is that of the wrapped strategy.
    """

    name = "spread_over_volumes"
    asks_for = "spread over many volumes"
    source = "arXiv 2412.08081"
    selection_cost = "the wrapped strategy's, once or a few times"

    inner: Strategy = parameter(None, "the strategy that selects")
    per_volume: int = parameter(1, "most items of one volume in a batch, m", low=1, high=1_000_000)

    @property
    def needs(self) -> tuple[Signal, ...]:
        return self.inner.needs

    def needs_next(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> tuple[Need, ...]:
        if type(self.inner).needs_next is Strategy.needs_next:
            return ()
        return self._turns(pool, signals, k, rng)[1]

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        return self._turns(pool, signals, k, rng)[0]

    def _turns(
        self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator
    ) -> tuple[Selection, tuple[Need, ...]]:
        """The selection; or, with what it needs and does not have yet, as far as it got."""
        rows, scores, why = np.empty(0, np.int64), np.empty(0), list[str]()
        given = np.zeros(int(pool.volume.max()) + 1, np.int64)
        bound, missing = self.per_volume, tuple[Need, ...]()
        while len(rows) < k:
            full = given[pool.volume] >= bound
            left = replace(pool, labeled=pool.labeled | np.isin(np.arange(len(pool)), rows), held=pool.held | full)
            count = min(k - len(rows), len(left.candidates))
            if not count:
                bound += self.per_volume
                continue
            # A copy, because what is needed next is told from the same draws that the selection will make.
            wanted = self.inner.needs_next(left, signals, count, deepcopy(rng))
            if missing := tuple(need for need in wanted if need.name not in signals):
                break
            chosen = self.inner.select(left, signals, count, rng)
            reasons = chosen.why or (self.inner.asks_for,) * count
            kept = _first_of_each(left.volume[chosen.rows], bound - given)
            rows, scores = np.append(rows, chosen.rows[kept]), np.append(scores, chosen.scores[kept])
            later = " (among the volumes with room left)" if len(rows) > len(kept) else ""
            why += [reasons[i] + later for i in kept]
            given = np.bincount(pool.volume[rows], minlength=len(given))
        return Selection(rows, scores, tuple(f"{reason}; at most {bound} of one volume" for reason in why)), missing


def _first_of_each(volumes: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Places of the first room[v] entries of each volume v, in order."""
    order = np.argsort(volumes, kind="stable")
    ranked = volumes[order]
    nth = np.empty(len(volumes), np.int64)
    nth[order] = np.arange(len(volumes)) - np.searchsorted(ranked, ranked, side="left")
    return np.flatnonzero(nth < room[volumes])
