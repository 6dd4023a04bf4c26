"""The tables of a campaign folder, checked, and its test scores as one array."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.campaign.kept import UPPER_BOUND
from loop.errors import BadInput

Floats = npt.NDArray[np.float64]

_RUN = ("strategy", "seed", "round")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "scores": (*_RUN, "labeled", "patient", "volume", "label", "dice_3d"),
    "picks": (*_RUN, "rank", "image", "slice", "score"),
    "timings": (*_RUN, "select_s", "sweep_s", "train_s", "measure_s", "other_s"),
}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {"scores": ("dice_2d", "hd95", "msd"), "picks": (), "timings": ()}
_TEXTS = ("strategy", "patient", "volume", "label", "image")
_WHOLE = ("seed", "round", "labeled", "rank")
_FACTS = ("unit", "rounds", "labels", "strategies", "seeds")


@dataclass(frozen=True)
class Tables:
    """What a campaign has written so far.

    Attributes:
        facts: campaign.json.
        scores: one row a run, round, test volume and class; Dice in 0..1, distances in mm, NaN where undefined.
        picks: one row an item that was chosen; `slice` is NaN for volumes.
        timings: seconds, one row a run and round.
    """

    folder: Path
    facts: Mapping[str, Any]
    scores: pd.DataFrame
    picks: pd.DataFrame
    timings: pd.DataFrame

    @property
    def labels(self) -> list[str]:
        return [str(name) for name in self.facts["labels"]]

    @property
    def unit(self) -> str:
        """What is annotated, in the plural."""
        return f"{self.facts['unit']}s"

    @cached_property
    def strategies(self) -> list[str]:
        """Those that have scores, in the campaign's order, without the upper bound."""
        there = set(self.scores["strategy"])
        ordered = [*map(str, self.facts["strategies"]), *sorted(there)]
        return [name for name in dict.fromkeys(ordered) if name in there and name != UPPER_BOUND]

    @property
    def has_upper_bound(self) -> bool:
        return bool((self.scores["strategy"] == UPPER_BOUND).any())

    def missing(self) -> list[str]:
        """The cells of the plan that have no scores yet, each as a phrase: `usim_f, seed 2: rounds 3 to 5`."""
        there = set(zip(self.scores["strategy"], self.scores["seed"], self.scores["round"], strict=True))
        found = []
        for name in dict.fromkeys(map(str, self.facts["strategies"])):
            rounds = range(1) if name == UPPER_BOUND else range(int(self.facts["rounds"]) + 1)
            for seed in map(int, self.facts["seeds"]):
                gaps = [number for number in rounds if (name, seed, number) not in there]
                if gaps:
                    found.append(f"{name}, seed {seed}: {_span(gaps, len(rounds))}")
        return found

    def uneven_starts(self) -> list[int]:
        """Seeds whose strategies do not begin with the same scores: runs of machines that round otherwise."""
        begun = self.scores[(self.scores["round"] == 0) & (self.scores["strategy"] != UPPER_BOUND)]
        cells = begun.pivot(index=["seed", "volume", "label"], columns="strategy", values="dice_3d")
        there = cells.T.max() - cells.T.min()
        return sorted({int(seed) for seed, *_ in there[there > 0].index})


def read_tables(folder: Path) -> Tables:
    """Read a campaign folder; a campaign that still runs is read as far as it is.

    Raises:
        BadInput: no campaign folder, a table or a column that is needed is missing, a cell that is no number, a row twice.
    """
    file = folder / "campaign.json"
    if not file.is_file():
        raise BadInput(
            f"A campaign folder must hold campaign.json, got {str(folder)!r}. `nextslice simulate` makes one."
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} must be JSON: {error}.") from None
    lacking = [key for key in _FACTS if not isinstance(facts, dict) or key not in facts]
    if lacking:
        raise BadInput(f"{file} must have {', '.join(_FACTS)}; it lacks {', '.join(lacking)}.")
    if facts["unit"] not in ("slice", "volume"):
        raise BadInput(f"{file}: unit must be slice or volume, got {facts['unit']!r}.")
    scores, picks, timings = (_read(folder, name) for name in _COLUMNS)
    if scores.empty:
        raise BadInput(f"{folder / 'scores.csv'} has no scores yet. Wait until the first round has been measured.")
    _check_whole(folder / "scores.csv", scores)
    return Tables(folder, facts, scores, picks, timings)


def _read(folder: Path, name: str) -> pd.DataFrame:
    """One table with the right types; further columns are kept as they are."""
    file, needed = folder / f"{name}.csv", _COLUMNS[name]
    if not file.is_file():
        raise BadInput(f"A campaign folder must hold {name}.csv, and {str(folder)!r} does not.")
    try:
        read = pd.read_csv(file, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        read = pd.DataFrame({column: pd.Series(dtype=str) for column in needed})
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} must be a table of comma-separated values: {error}.") from None
    lacking = [column for column in needed if column not in read]
    if lacking:
        raise BadInput(f"{file} must have the columns {', '.join(needed)}; it lacks {', '.join(lacking)}.")
    for column in _OPTIONAL[name]:
        if column not in read:
            read[column] = ""
    voxels = [str(column) for column in read if str(column).startswith("voxels_")]
    for column in [*needed, *_OPTIONAL[name], *voxels]:
        if column not in _TEXTS:
            read[column] = _numbers(file, column, read[column])
    key = [*_RUN, "volume", "label"] if name == "scores" else [*_RUN, "image", "slice"] if name == "picks" else [*_RUN]
    if read.duplicated(key).any():
        raise BadInput(f"{file} must have one row for each {', '.join(key)}; it has {_first(read, key)} twice.")
    return read


def _check_whole(file: Path, scores: pd.DataFrame) -> None:
    """Raise BadInput unless each run has its rounds from 0 on without gaps, and every round the same test volumes."""
    for (name, seed), rounds in scores.groupby(["strategy", "seed"])["round"]:
        if rounds.nunique() != rounds.max() + 1:
            raise BadInput(f"{file} must have every round from 0 up to a run's last; {name}, seed {seed} has gaps.")
    cells = len(scores.drop_duplicates(["patient", "volume", "label"]))
    for run, rows in scores.groupby(list(_RUN)):
        if len(rows) != cells:
            where = ", ".join(f"{key} {value}" for key, value in zip(_RUN, run, strict=True))
            raise BadInput(
                f"{file} must have the same {cells} volumes and classes in every round; {where} has {len(rows)}."
            )


def _numbers(file: Path, column: str, texts: pd.Series) -> pd.Series:
    """A column of text as numbers; empty is NaN, which a whole number may not be."""
    values = pd.to_numeric(texts.replace("", "nan"), errors="coerce").astype(float)
    allowed = set() if column in _WHOLE else {"", "nan", "NaN"}
    wrong = values.isna() & ~texts.isin(allowed) | (np.isinf(values) if column != "score" else values != values)
    wrong &= ~texts.isin(allowed)
    if wrong.any():
        raise BadInput(f"{file}, column {column}: every cell must be a number, got {texts[wrong].iloc[0]!r}.")
    return values.astype(int) if column in _WHOLE else values


def _first(table: pd.DataFrame, key: Sequence[str]) -> str:
    row = table[table.duplicated(list(key))].iloc[0]
    return ", ".join(str(row[column]) for column in key)


def _span(numbers: Sequence[int], of: int) -> str:
    if len(numbers) == of:
        return "not there yet"
    named = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
    return named if numbers[-1] - numbers[0] + 1 == len(numbers) else f"{len(numbers)} of the {named}"
