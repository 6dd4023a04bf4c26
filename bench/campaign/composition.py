"""What strategies picked: how much alike the picks are, and which classes they show."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bench.campaign.kept import UPPER_BOUND
from bench.campaign.tables import Floats, Tables

BACKGROUND = "voxels_background"


def compositions(tables: Tables) -> pd.DataFrame:
    """One row a strategy, of its picks after the common start; each figure is a mean over seeds.

    Columns:
        picks: items. per_volume: picks for each volume picked from. spread: volumes picked from / picks, 1 is the most.
        distance: slices to the nearest other pick of the volume, of this or an earlier round or the start; the median.
        foreground: share of the picked voxels that are of a class. empty: share of picks without any class.
        evenness: entropy of the classes' voxels / its largest value, 0..1.
        share_<class>: share of picks that show the class.
    """
    picks = tables.picks[tables.picks["strategy"] != UPPER_BOUND]
    rows = []
    for (name, seed), run in picks.groupby(["strategy", "seed"]):
        if (run["round"] > 0).any():
            rows.append({"strategy": name, "seed": seed, **_composition(run, tables.labels)})
    if not rows:
        return pd.DataFrame({"strategy": pd.Series(dtype=str)}).set_index("strategy")
    means = pd.DataFrame(rows).drop(columns="seed").groupby("strategy").mean()
    return means.loc[[name for name in tables.strategies if name in means.index]]


def _composition(run: pd.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Of one run."""
    chosen = run[run["round"] > 0]
    volumes = chosen["image"].nunique()
    found = {
        "picks": float(len(chosen)), "per_volume": len(chosen) / volumes, "spread": volumes / len(chosen),
        "distance": _median(nearest(run)),
    }  # fmt: skip
    columns = [f"voxels_{label}" for label in labels]
    if not {BACKGROUND, *columns} <= set(chosen):
        return found
    voxels = chosen[columns].to_numpy(float)
    every = voxels.sum() + float(chosen[BACKGROUND].sum())
    found |= {
        "foreground": float(voxels.sum() / every) if every else float("nan"),
        "empty": float((voxels.sum(1) == 0).mean()),
        "evenness": evenness(voxels.sum(0)),
    }
    return found | {
        f"share_{label}": float((column > 0).mean()) for label, column in zip(labels, voxels.T, strict=True)
    }


def nearest(run: pd.DataFrame) -> Floats:
    """Of each pick after the start, slices to the nearest item of its volume that was picked no later; NaN if it is alone."""
    image, place, number = (run[column].to_numpy() for column in ("image", "slice", "round"))
    found = []
    for at in np.flatnonzero(number > 0):
        others = (image == image[at]) & (number <= number[at])
        others[at] = False
        gaps = np.abs(place[others] - place[at])
        found.append(float(gaps.min()) if len(gaps) else np.nan)
    return np.array(found)


def evenness(counts: Floats) -> float:
    """Entropy of shares over its largest value: 1 where all classes have the same, 0 where one has all, NaN without any."""
    total = float(counts.sum())
    if total == 0 or len(counts) < 2:
        return float("nan")
    shares = counts[counts > 0] / total
    # Minus zero looks odd in a table.
    return abs(float(-(shares * np.log(shares)).sum() / np.log(len(counts))))


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
