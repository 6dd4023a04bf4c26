"""Figures of a campaign. Each function returns a figure that belongs to no window and no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bench.campaign.effort import STEPS
from bench.campaign.kept import UPPER_BOUND
from bench.campaign.penalty import Penalties
from bench.campaign.statistics import Curve, Estimate
from bench.campaign.tables import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches; with DPI, what fills the page of the report."""
DPI = 120

# Okabe and Ito's colours, which colour-blind people tell apart; their yellow is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C613C")
_LINES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX<>*hp"
_STEP_NAMES = dict(zip(STEPS, ("choosing", "sweep", "training", "measuring", "other"), strict=True))


MOST_COLOURED = 10
"""More lines than that are told apart by nobody; the others are grey."""


@dataclass(frozen=True)
class Style:
    """How a strategy is drawn, everywhere the same; faint: grey, and not in legends."""

    colour: str
    line: Any
    marker: str
    faint: bool = False


def styles(ranked: Sequence[str], reference: str) -> dict[str, Style]:
    """The reference in black, the others by colour, line and marker, so that none hangs on colour alone.

    Args:
        ranked: strategies, those first that should be seen.
    """
    others = [name for name in ranked if name != reference]
    found = {reference: Style("#000000", "-", "o")}
    for number, (name, colour, marker) in enumerate(zip(others, cycle(COLOURS), cycle(_MARKERS[1:]), strict=False)):
        line = _LINES[(number + number // len(COLOURS)) % len(_LINES)]
        faint = number + 1 >= MOST_COLOURED
        found[name] = Style("#B0B0B0", "-", "o", faint=True) if faint else Style(colour, line, marker)
    return found


def learning_curves(
    curves: Mapping[str, Curve], looks: Mapping[str, Style], banded: Sequence[str], unit: str, measure: str
) -> Figure:
    """Dice against annotated units; the upper bound dashed.

    Args:
        banded: strategies with a band of their 95 % intervals; more than two or three bands hide each other.
    """
    figure, (axes,) = panels(5.2)
    for name, curve in curves.items():
        if name == UPPER_BOUND:
            _bound(axes, curve)
        else:
            _line(axes, name, curve.labeled, curve.mean, looks[name])
            if name in banded and np.isfinite(curve.low).any():
                axes.fill_between(curve.labeled, curve.low, curve.high, color=looks[name].colour, alpha=0.15, lw=0)
    axes.set_xlabel(f"annotated {unit}")
    axes.set_ylabel(f"mean {measure}")
    _finish(axes)
    _legend_right(axes, *_named_lines(axes, looks))
    return figure


def class_curves(
    means: Mapping[str, Floats],
    labeled: Mapping[str, Floats],
    labels: Sequence[str],
    looks: Mapping[str, Style],
    unit: str,
) -> Figure:
    """One panel a class, without bands; means: {strategy: (R, C)}, the upper bound (1, C)."""
    columns = 2 if len(labels) in (2, 4) else min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure, grid = panels(2.7 * rows + 0.6, rows, columns, share="x")
    for number, (axes, label) in enumerate(zip(grid, labels, strict=False)):
        for name, mean in means.items():
            if name == UPPER_BOUND:
                axes.axhline(mean[0, number], color="0.35", linestyle="--", label="all labelled")
            else:
                _line(axes, name, labeled[name], mean[:, number], looks[name])
        axes.set_title(short(label, 24), fontsize=10)
        _finish(axes)
        if number + columns >= len(labels):
            axes.set_xlabel(f"annotated {unit}")
            axes.tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel("mean 3-D Dice")
    for axes in grid[len(labels) :]:
        axes.remove()
    figure.legend(*_named_lines(grid[0], looks), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def forest(differences: Mapping[str, Mapping[str, Estimate]], looks: Mapping[str, Style]) -> Figure:
    """Differences in area under the curve with 95 % intervals; one panel for each baseline, best on top."""
    first = next(iter(differences.values()))
    order = sorted(first, key=lambda name: np.nan_to_num(first[name].value, nan=-np.inf))
    figure, grid = panels(0.34 * len(order) + 1.5, 1, len(differences), share="y")
    for axes, (baseline, rows) in zip(grid, differences.items(), strict=True):
        for place, name in enumerate(order):
            there = rows.get(name)
            if there is None or np.isnan(there.value):
                continue
            axes.plot([there.low, there.high], [place, place], color=looks[name].colour, lw=2.2)
            axes.plot(there.value, place, marker=looks[name].marker, color=looks[name].colour, ms=7)
        axes.axvline(0.0, color="0.35", lw=1)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_yticks(range(len(order)), [short(name) for name in order])
        axes.set_xlabel(f"Dice above {short(baseline)}, over the curve")
        axes.grid(axis="x", color="0.9")
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def penalties(found: Penalties) -> Figure:
    """The pairwise penalty matrix with its values in per cent, and the column means below."""
    size = len(found.strategies)
    shown = 100 * np.vstack([found.share, np.full((1, size), np.nan), found.phi])
    figure, (axes,) = panels(0.42 * size + 2.6, width=min(WIDTH, 0.72 * size + 3.4))
    names = [short(name) for name in found.strategies]
    _matrix(axes, shown, [*names, "", "Φ (lower is better)"], names, top=100.0, digits=0)
    axes.set_ylabel("row beats column, % of rounds")
    axes.yaxis.set_label_position("right")
    return figure


def picked(compositions: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Shares that describe the picks, one row a strategy; columns: {column: heading}."""
    there = {column: heading for column, heading in columns.items() if column in compositions}
    values = compositions[list(there)].to_numpy(float)
    figure, (axes,) = panels(0.36 * len(compositions) + 2.2)
    _matrix(axes, values, [short(str(name)) for name in compositions.index], list(there.values()), top=1.0, digits=2)
    return figure


def time_bars(split: pd.DataFrame) -> Figure:
    """Seconds of a round in each step, stacked."""
    figure, (axes,) = panels(0.34 * len(split) + 1.6)
    left = np.zeros(len(split))
    hatches = ("", "///", "", "...", "")
    places = np.arange(len(split))[::-1]
    for step, colour, hatch in zip(STEPS, COLOURS, hatches, strict=False):
        seconds = split[step].fillna(0.0).to_numpy(float)
        axes.barh(
            places, seconds, left=left, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=_STEP_NAMES[step]
        )
        left = left + seconds
    names = ["all labelled" if name == UPPER_BOUND else short(str(name)) for name in split.index]
    axes.set_yticks(places, names)
    axes.set_xlabel("seconds a round, mean over rounds and seeds")
    axes.spines[["top", "right"]].set_visible(False)
    _legend_right(axes, *axes.get_legend_handles_labels())
    return figure


def panels(
    height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, share: Literal["", "x", "y"] = ""
) -> tuple[Figure, list[Axes]]:
    """A figure of that height in inches and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share == "x", sharey=share == "y", squeeze=False)
    return figure, list(grid.ravel())


def _line(axes: Axes, name: str, labeled: Floats, mean: Floats, look: Style) -> None:
    if look.faint:
        axes.plot(labeled, mean, color=look.colour, lw=0.9, zorder=1.5)
        return
    axes.plot(
        labeled, mean, color=look.colour, linestyle=look.line, marker=look.marker, ms=5, lw=1.8, label=short(name)
    )  # fmt: skip


def _named_lines(axes: Axes, looks: Mapping[str, Style]) -> tuple[list[Any], list[str]]:
    """What the legend names; the grey lines together."""
    from matplotlib.lines import Line2D

    handles, names = axes.get_legend_handles_labels()
    faint = [look for look in looks.values() if look.faint]
    if faint:
        handles.append(Line2D([], [], color=faint[0].colour, lw=0.9))
        names.append(f"{len(faint)} others")
    return handles, names


def _bound(axes: Axes, curve: Curve) -> None:
    axes.axhline(curve.mean[0], color="0.35", linestyle="--", lw=1.6, label="all labelled")
    if np.isfinite(curve.low[0]):
        axes.axhspan(curve.low[0], curve.high[0], color="0.5", alpha=0.15, lw=0)


def _finish(axes: Axes) -> None:
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    # Wide bands of few seeds may leave the range that Dice has.
    axes.set_ylim(max(low, -0.02), min(high, 1.02))


def _legend_right(axes: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    axes.legend(
        handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9.5, handlelength=3.2
    )


def _matrix(
    axes: Axes, values: Floats, rows: Sequence[str], columns: Sequence[str], *, top: float, digits: int
) -> None:
    """A table of numbers on colours; dark cells have white numbers."""
    axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=1.25 * top, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if rows[row]:
            text = "–" if np.isnan(value) else f"{value:.{digits}f}"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=9 if len(columns) < 16 else 8,
                color="w" if value > 0.7 * top else "k",
            )
    axes.set_xticks(
        range(len(columns)), columns, rotation=90 if len(columns) > 12 else 40, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks([row for row, name in enumerate(rows) if name], [name for name in rows if name])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def short(name: str, most: int = 28) -> str:
    """A name that leaves room for the axes; dollar signs are no formulas."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
