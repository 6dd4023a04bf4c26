"""Pictures of what was picked: slices with their masks, and where picks lie among the pool's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.campaign.figures import COLOURS, WIDTH, panels, short
from bench.campaign.kept import LABELED, PICKED, POOL
from bench.campaign.tables import Tables
from datastore.volume_io import SUFFIXES, Volume, read_volume
from loop.config import AppConfig
from loop.errors import NextSliceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6
"""Picks of a strategy that are shown, those that it wanted most in its first round."""
MOST_ROWS = 8

_KINDS = {
    POOL: ("pool", "#9A9A9A", "o", 9),
    LABELED: ("labelled before", "#0072B2", "s", 22),
    PICKED: ("picked in the last round", "#D55E00", "^", 34),
}


@dataclass(frozen=True)
class Slice:
    """A picked slice: (H, W) image and mask, the height of a pixel over its width, and what stands above it."""

    image: npt.NDArray[Any]
    mask: npt.NDArray[Any]
    aspect: float
    title: str


def picked_slices(tables: Tables, strategies: Sequence[str]) -> dict[str, list[Slice]]:
    """The first picks of each strategy, of its first seed, as far as their files are there.

    Raises:
        NextSliceError: a file cannot be read.
    """
    chosen = {name: _first_picks(tables.picks, name) for name in strategies[:MOST_ROWS]}
    files = {}
    for image in {str(image) for rows in chosen.values() for image in rows["image"]}:
        image_file, mask_file = (_file(Path(str(tables.facts.get(kind, ""))), image) for kind in ("images", "masks"))
        if image_file and mask_file:
            files[image] = (image_file, mask_file)
    found: dict[str, dict[int, Slice]] = {name: {} for name in chosen}
    # Volume by volume, so that none is read twice and only one is held.
    for image, (image_file, mask_file) in sorted(files.items()):
        volume, mask = read_volume(image_file), read_volume(mask_file)
        for name, rows in chosen.items():
            for place, (_, row) in enumerate(rows.iterrows()):
                if row["image"] == image:
                    found[name][place] = _slice(
                        volume, mask, row, str(tables.facts.get("settings", {}).get("axis", "auto"))
                    )
    return {name: [slices[place] for place in sorted(slices)] for name, slices in found.items() if slices}


def thumbnails(slices: Mapping[str, Sequence[Slice]], labels: Sequence[str]) -> Figure:
    """One row a strategy."""
    from matplotlib.lines import Line2D

    figure, grid = panels(1.75 * len(slices) + 0.5, len(slices), SHOWN)
    for number, (name, shown) in enumerate(slices.items()):
        row = grid[SHOWN * number : SHOWN * (number + 1)]
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, one in zip(row, shown, strict=False):
            _draw(axes, one, len(labels))
        row[0].set_ylabel(short(name, 24), fontsize=8.5)
    lines = [Line2D([], [], color=_colour(number), lw=2) for number in range(len(labels))]
    figure.legend(
        lines, [short(label) for label in labels], loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    return figure


def embedding_maps(folder: Path, strategies: Sequence[str]) -> Figure | None:
    """Where the picks of the last round lie among the pool, one panel a strategy; None where no map was kept.

    A map that cannot be read, or lacks `points` (N, 2) or `state` (N,), is left out.
    """
    maps = {name: one for name in strategies[:MOST_ROWS] if (one := _map(folder, name)) is not None}
    if not maps:
        return None
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure, grid = panels(WIDTH / columns * 0.9 * rows + 0.5, rows, columns)
    for axes, (name, (points, state)) in zip(grid, maps.items(), strict=False):
        for kind, (label, colour, marker, size) in _KINDS.items():
            own = points[state == kind]
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=size,
                c=colour,
                marker=marker,
                lw=0.4 if kind else 0,
                edgecolors="white",
                label=label,
            )
        axes.set_title(short(name), fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(maps) :]:
        axes.remove()
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _map(folder: Path, strategy: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    for file in sorted((folder / "maps").glob("*.npz")):
        if file.name.rpartition("-seed")[0] == strategy:
            try:
                with np.load(file, allow_pickle=False) as held:
                    points, state = held["points"], held["state"]
            except (OSError, ValueError, KeyError, BadZipFile):
                continue
            if points.ndim == 2 and points.shape[1] == 2 and state.shape == points.shape[:1]:
                return points, state
    return None


def _first_picks(picks: pd.DataFrame, strategy: str) -> pd.DataFrame:
    own = picks[(picks["strategy"] == strategy) & (picks["round"] > 0)]
    own = own[own["seed"] == own["seed"].min()]
    first: pd.DataFrame = own.sort_values(["round", "rank"]).head(SHOWN)
    return first


def _file(folder: Path, image: str) -> Path | None:
    """The file of an image id, inside the folder."""
    root = folder.resolve()
    for suffix in SUFFIXES:
        file = folder / f"{image}{suffix}"
        if file.resolve().is_relative_to(root) and file.is_file():
            return file
    return None


def _slice(volume: Volume, mask: Volume, row: pd.Series, axis_setting: str) -> Slice:
    """The picked slice; of a picked volume, the one with the most foreground."""
    if mask.array.shape != volume.array.shape:
        raise NextSliceError(
            f"The mask of {row['image']} has shape {mask.array.shape}, the image {volume.array.shape}."
        )
    axis = AppConfig(axis=axis_setting if axis_setting in ("0", "1", "2") else "auto").axis_of(volume.spacing)
    images, masks = np.moveaxis(volume.array, axis, 0), np.moveaxis(mask.array, axis, 0)
    whole = np.isnan(row["slice"])
    number = int((masks > 0).sum((1, 2)).argmax()) if whole else min(int(row["slice"]), len(images) - 1)
    x, y = (length for at, length in enumerate(volume.spacing) if at != axis)
    score = "" if np.isnan(row["score"]) else f"\nscore {row['score']:.3g}"
    title = f"{short(str(row['image']), 16)}: {number}{score}"
    # Columns of the array are drawn upwards, as a viewer shows RAS axes.
    return Slice(images[number].T[::-1], masks[number].T[::-1], y / x, title)


def _draw(axes: Axes, one: Slice, classes: int) -> None:
    low, high = np.percentile(one.image, (1, 99))
    axes.imshow(
        one.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=one.aspect, interpolation="nearest"
    )
    for number in range(classes):
        inside = one.mask == number + 1
        # A contour needs two pixels along each side and both values.
        if min(inside.shape) > 1 and inside.any() and not inside.all():
            axes.contour(inside, levels=[0.5], colors=[_colour(number)], linewidths=1.1)
    axes.set_title(one.title, fontsize=7.5)


def _colour(number: int) -> str:
    return COLOURS[(number + 1) % len(COLOURS)]
