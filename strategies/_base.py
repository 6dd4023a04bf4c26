"""The contract of a query strategy: arrays in, pool rows out."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from loop.pool import Pool
from loop.signals import TASK, FloatArray, PoolMean, Signal
from loop.views import Difficulty, Ensemble, PredictedLoss
from strategies._topk import top_k

Signals = Mapping[str, FloatArray]
"""By the name of what was needed: (N,) or (N, D) for a Signal, (D,) for a PoolMean."""

Need = Signal | PoolMean


@dataclass(frozen=True)
class Selection:
    """What a strategy wants labelled next.

    Attributes:
        rows: (k,) distinct candidate rows, first to be asked first.
        scores: (k,) higher = more wanted; shown to people, comparable within one selection only.
        why: k short plain sentences, one a row; empty lets the strategy's own sentence stand for all.
    """

    rows: npt.NDArray[np.int64]
    scores: FloatArray
    why: tuple[str, ...] = ()


def parameter(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A strategy's parameter: a dataclass field that carries its meaning and what it may be to the user."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class Strategy(ABC):
    """A query strategy. Parameters are frozen dataclass fields; nothing is kept between rounds.

    A subclass implements `select`. The loop calls `ask`, which checks both sides of the contract: k candidates that are
    distinct, finite signals, a generator seeded by (seed, round). A strategy that wraps another holds it as a field.
    """

    name: ClassVar[str]
    asks_for: ClassVar[str]
    """What it wants, in one short plain sentence that an annotator can read."""
    source: ClassVar[str] = ""
    """Paper and equation."""
    selection_cost: ClassVar[str] = "a sort"
    """What choosing costs once the signals are there."""
    further_cost: ClassVar[tuple[str, ...]] = ()
    """What `needs_next`, or the training of a learner, adds to the sweep."""

    @classmethod
    def may_wrap(cls, inner: "Strategy") -> bool:
        """Of a wrapper: whether it can be put around that strategy, besides the type of its field."""
        return True

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The signals `select` reads; empty for a strategy that needs no model."""
        return ()

    @property
    def needs_task_model(self) -> bool:
        """Whether it can choose only when there is a trained segmentation model; a learner is trained when it is needed."""
        return any(need.model == TASK for need in self.needs)

    def can_choose_with(self, model: str | None, heads: Collection[str]) -> bool:
        """Whether all that it looks at can be had of these weights, with these heads; if not, the cold start stands in."""
        return (model is not None or not self.needs_task_model) and self.needs_heads <= set(heads)

    @property
    def needs_heads(self) -> frozenset[str]:
        """The auxiliary heads of the segmentation model that it looks at; they must have been trained with it."""
        return frozenset(need.view.head for need in self.needs if isinstance(need.view, PredictedLoss | Difficulty))

    @property
    def needs_members(self) -> int:
        """How many segmentation models it lets vote."""
        return max((need.view.members for need in self.needs if isinstance(need.view, Ensemble)), default=1)

    def needs_next(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> tuple[Need, ...]:
        """What `select` needs besides, now that `signals` are there: asked again with every answer, until it is nothing.

        For a strategy that chooses what it looks at by what it saw. The generator starts as it does in `select`, so that the
        same draws can be made again.
        """
        return ()

    @abstractmethod
    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        """Choose exactly k of pool.candidates, 1 <= k <= M.

        `signals` has what `needs` and `needs_next` named.
        """

    def wants(self, pool: Pool, signals: Signals, k: int, *, seed: int, round_no: int) -> tuple[Need, ...]:
        """What must be computed before `ask`: `needs` at first, then `needs_next`; () when `ask` can be called.

        Raises:
            ValueError: as `ask`.
        """
        missing = tuple(need for need in self.needs if need.name not in signals)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.check_parameters()
        self._check_signals(pool, signals)
        k = min(k, len(pool.candidates))
        if missing or not k:
            return missing
        further = self.needs_next(pool, signals, k, np.random.default_rng([seed, round_no]))
        return tuple(need for need in further if need.name not in signals)

    def ask(self, pool: Pool, signals: Signals, k: int, *, seed: int, round_no: int) -> Selection:
        """Select min(k, M) candidates, with every promise checked.

        Raises:
            ValueError: k < 1, a signal is missing, misshapen or not finite (the item is named), or `select` broke the contract.
        """
        if missing := self.wants(pool, signals, k, seed=seed, round_no=round_no):
            raise ValueError(f"{self.name} needs the signal {missing[0].name!r}, got {sorted(signals)}.")
        k = min(k, len(pool.candidates))
        if k == 0:
            return Selection(np.empty(0, np.int64), np.empty(0))
        rng = np.random.default_rng([seed, round_no])
        selection = self.select(pool, signals, k, rng)
        self._check_selection(pool, selection, k)
        why = selection.why or (self.asks_for,) * k
        return Selection(selection.rows, selection.scores, why)

    def check_parameters(self) -> None:
        """Raise ValueError for the first parameter that is not what it may be."""
        for spec in fields(self):
            value, low, high = getattr(self, spec.name), spec.metadata.get("low"), spec.metadata.get("high")
            choices = spec.metadata.get("choices")
            if isinstance(value, Strategy):
                value.check_parameters()
            if choices and value not in choices:
                raise ValueError(f"{self.name}: {spec.name} must be one of {', '.join(choices)}, got {value!r}.")
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                raise ValueError(f"{self.name}: {spec.name} must be between {low} and {high}, got {value!r}.")

    def _check_signals(self, pool: Pool, signals: Signals) -> None:
        used, rowwise = pool.labeled | ~pool.held, {need.name for need in self.needs}
        for name, value in signals.items():
            if value.shape[:1] != (len(pool),):
                if name in rowwise:
                    raise ValueError(
                        f"Signal {name!r} must have {len(pool)} rows, one an item, got shape {value.shape}."
                    )
                if not np.isfinite(value).all():
                    raise ValueError(f"Signal {name!r} is not finite.")
                continue
            finite = np.isfinite(value) if value.ndim == 1 else np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
            bad = np.flatnonzero(used & ~finite)
            if len(bad):
                raise ValueError(
                    f"Signal {name!r} is not finite for {pool.items[int(bad[0])]} and {len(bad) - 1} more items."
                )

    def _check_selection(self, pool: Pool, selection: Selection, k: int) -> None:
        rows = selection.rows
        if rows.shape != (k,) or selection.scores.shape != (k,):
            raise ValueError(
                f"{self.name} must select {k} rows with {k} scores, got {rows.shape} and {selection.scores.shape}."
            )
        if len(np.unique(rows)) != k:
            raise ValueError(f"{self.name} selected a row twice.")
        if not np.isin(rows, pool.candidates).all():
            raise ValueError(f"{self.name} selected rows that are not candidates.")
        if not np.isfinite(selection.scores).all():
            raise ValueError(f"{self.name} gave a score that is not finite.")
        if len(selection.why) not in (0, k):
            raise ValueError(f"{self.name} must give no reason or {k}, got {len(selection.why)}.")


@dataclass(frozen=True)
class ScoreStrategy(Strategy):
    """A strategy that is one number an item; choosing the highest, and breaking ties by the seed, come free."""

    never_negative: ClassVar[bool] = True
    """Whether 0 is the least wanted there is, so that a logarithm of the score means something."""

    @abstractmethod
    def score(self, pool: Pool, signals: Signals, rng: np.random.Generator) -> FloatArray:
        """(N,) higher = more wanted. Rows that are no candidates may hold anything."""

    def select(self, pool: Pool, signals: Signals, k: int, rng: np.random.Generator) -> Selection:
        scores = self.score(pool, signals, rng)[pool.candidates]
        chosen = top_k(scores, k, rng)
        return Selection(pool.candidates[chosen], scores[chosen], self.reasons(scores, chosen))

    def reasons(self, scores: FloatArray, chosen: npt.NDArray[np.int64]) -> tuple[str, ...]:
        """Why each was chosen: its place among all candidates."""
        return tuple(f"{self.asks_for}: {place}" for place in places(scores, chosen))


def places(scores: FloatArray, chosen: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Where the chosen stand among all, in words such as "top 3 % of 200"; of equals, all have the same place."""
    above = len(scores) - np.searchsorted(np.sort(scores), scores[chosen], side="left")
    share = np.maximum(1, np.ceil(100 * above / len(scores)).astype(int))
    return tuple(f"top {p} % of {len(scores)}" for p in share)
