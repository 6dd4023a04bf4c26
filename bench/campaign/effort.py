"""What annotation and computation cost: hours of a person, foreground voxels, seconds of the machine."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from bench.campaign.kept import UPPER_BOUND
from bench.campaign.statistics import Bootstrap, learning_curve
from bench.campaign.tables import Floats, Tables

STEPS = ("select_s", "sweep_s", "train_s", "measure_s", "other_s")
SCRIBBLE_SPEEDUP = 15.0
"""A scribble is drawn 15 times faster than a mask (metric core-set paper, section 4.4 and figure 2)."""
MASK_SECONDS = 60.0
"""For a mask of one slice; no paper here measured it, so that hours only compare."""

_MOST_RATE = 1e4


def annotation_hours(slices: float, mask_s: float = MASK_SECONDS, *, speedup: float = 1.0) -> float:
    """Hours to annotate slices at `mask_s` seconds each, `speedup` times faster with scribbles."""
    return slices * mask_s / speedup / 3600


def slices_per_unit(tables: Tables) -> float:
    """1, or the slices of a mean volume of the pool; NaN where campaign.json does not say."""
    if tables.facts["unit"] == "slice":
        return 1.0
    volumes, slices = tables.facts.get("pool_volumes"), tables.facts.get("pool_slices")
    return float(slices) / float(volumes) if volumes and slices else float("nan")


def foreground(tables: Tables, strategy: str, rounds: int) -> Floats:
    """(R,) foreground voxels annotated up to each round, mean over seeds."""
    picks = tables.picks[tables.picks["strategy"] == strategy]
    columns = [name for name in (f"voxels_{label}" for label in tables.labels) if name in picks]
    voxels = picks.assign(voxels=picks[columns].sum(axis=1)).groupby(["seed", "round"])["voxels"].sum().unstack("seed")
    cumulated = voxels.reindex(range(rounds)).fillna(0.0).cumsum()
    return cumulated.mean(axis=1).to_numpy(float)


@dataclass(frozen=True)
class Efficiency:
    """Foreground efficiency: `rate` is gamma, higher is better; `used` the share of the pool's foreground that was annotated."""

    rate: float
    used: float


def foreground_efficiency(tables: Tables, bootstrap: Bootstrap, strategy: str) -> Efficiency | None:
    """How fast the gap to the upper bound closes with annotated foreground, after nnActive (Lueth et al. 2025), section 4.

    gamma of the least-squares fit Dice(f) = Dice_all - (Dice_all - Dice_0) exp(-gamma (f - f_0)), with f the annotated share of
    the pool's foreground voxels, and 0 the common start. It compares strategies of one campaign only.

    Returns:
        None where the upper bound, its voxels or a second round is missing, or the start is not below the upper bound.
    """
    if UPPER_BOUND not in bootstrap.scores.runs:
        return None
    curve = learning_curve(bootstrap, strategy).mean
    bound = float(learning_curve(bootstrap, UPPER_BOUND).mean[0])
    whole = float(foreground(tables, UPPER_BOUND, 1)[0])
    if len(curve) < 2 or whole <= 0 or not bound > curve[0]:
        return None
    share = foreground(tables, strategy, len(curve)) / whole
    return Efficiency(gain_rate(share - share[0], (bound - curve) / (bound - curve[0])), float(share[-1]))


def gain_rate(used: Floats, gap: Floats) -> float:
    """gamma >= 0 that fits gap = exp(-gamma used) with the least squared error; NaN where nothing was used."""
    if not used.max() > 0:
        return float("nan")

    def error(logarithm: float) -> float:
        return float(((np.exp(-np.exp(logarithm) * used) - gap) ** 2).sum())

    least = np.log(1e-3)
    # The error may have more than one valley when curves are ragged: begin the search at the best of a grid.
    grid = np.linspace(least, np.log(_MOST_RATE), 200)
    best = int(np.argmin([error(point) for point in grid]))
    if best == 0:
        return 0.0
    ends = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return float(np.exp(optimize.minimize_scalar(error, bounds=ends, method="bounded").x))


def time_split(tables: Tables) -> pd.DataFrame:
    """Seconds of a round in each step, one row a strategy: the mean over rounds and seeds.

    The start is left out, where nothing is chosen, but not of the upper bound, which has nothing else.
    """
    rows = tables.timings
    own = rows[(rows["round"] > 0) | (rows["strategy"] == UPPER_BOUND)]
    means = own.groupby("strategy")[list(STEPS)].mean()
    order = [*tables.strategies, UPPER_BOUND]
    return means.loc[[name for name in order if name in means.index]]


def choosing_seconds(tables: Tables, strategy: str) -> float:
    """Seconds that choosing and the sweep before it take in a round; infinity where it was not timed."""
    split = time_split(tables)
    if strategy not in split.index:
        return float("inf")
    seconds = split.loc[strategy, ["select_s", "sweep_s"]].to_numpy(float)
    return float(np.nansum(seconds))
