"""The test scores of all runs as one array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.campaign.tables import Floats, Tables


@dataclass(frozen=True)
class Runs:
    """The runs of one strategy.

    Attributes:
        seeds: (S,) in ascending order.
        labeled: (S, R) annotated units after each round; NaN where the run has not come so far.
        dice: (S, R, V, C) of each test volume and class, 0..1, higher is better; NaN where undefined or missing.
    """

    seeds: tuple[int, ...]
    labeled: Floats
    dice: Floats

    def reached(self, rounds: int) -> tuple[int, ...]:
        """The seeds that have scores of all of the first `rounds` rounds."""
        full = np.isfinite(self.labeled[:, :rounds]).all(1) & (self.labeled.shape[1] >= rounds)
        return tuple(seed for seed, there in zip(self.seeds, full, strict=True) if there)

    def of(self, seeds: Sequence[int], rounds: int) -> "Runs":
        """Some seeds, and the first rounds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Runs(tuple(seeds), self.labeled[rows, :rounds], self.dice[rows, :rounds])


@dataclass(frozen=True)
class Scores:
    """All runs on the same test volumes.

    Attributes:
        patient: (V,) the patient's number of each test volume.
        rounds: how many rounds the longest run has, the start among them.
    """

    runs: Mapping[str, Runs]
    volumes: tuple[str, ...]
    patient: npt.NDArray[np.intp]
    labels: tuple[str, ...]
    rounds: int


def scores_of(tables: Tables, measure: str = "dice_3d") -> Scores:
    """The scores of every strategy, the upper bound among them.

    Args:
        measure: dice_3d (over the volume) or dice_2d (mean over its slices).
    """
    rows = tables.scores
    volumes = rows.drop_duplicates(["patient", "volume"]).sort_values(["patient", "volume"])
    known = [tuple(pair) for pair in volumes[["patient", "volume"]].to_numpy().tolist()]
    labels = [*dict.fromkeys([*tables.labels, *sorted(set(rows["label"]))])]
    rounds = int(rows["round"].max()) + 1
    _, patient = np.unique([pair[0] for pair in known], return_inverse=True)
    place = {pair: number for number, pair in enumerate(known)}
    runs = {}
    for name, own in rows.groupby("strategy"):
        seeds = tuple(sorted({int(seed) for seed in own["seed"]}))
        s = own["seed"].map({seed: number for number, seed in enumerate(seeds)}).to_numpy(int)
        r = own["round"].to_numpy(int)
        v = np.array([place[pair] for pair in zip(own["patient"], own["volume"], strict=True)], int)
        c = own["label"].map({label: number for number, label in enumerate(labels)}).to_numpy(int)
        dice = np.full((len(seeds), rounds, len(known), len(labels)), np.nan)
        labeled = np.full((len(seeds), rounds), np.nan)
        dice[s, r, v, c] = own[measure].to_numpy(float)
        labeled[s, r] = own["labeled"].to_numpy(float)
        runs[str(name)] = Runs(seeds, labeled, dice)
    return Scores(runs, tuple(pair[1] for pair in known), patient, tuple(labels), rounds)
