"""Who beats whom: the pairwise penalty matrix (Ash et al. 2020, section 4 and appendix E; Ji et al. 2023; USIM, figure 2 D)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bench.campaign.scores import Scores
from bench.campaign.statistics import class_means
from bench.campaign.tables import Floats

SIGNIFICANCE = 0.05
LEAST_SEEDS = 3
"""With two seeds the test asks for t > 12.7, which almost nothing reaches; with one it does not exist."""


@dataclass(frozen=True)
class Penalties:
    """The matrix of a campaign.

    Attributes:
        share: (K, K) of the rounds in which row i beats column j; NaN where they share no round with two seeds.
        phi: (K,) column means, the zero of the diagonal among them; lower is better.
        seeds: the fewest that a test used.
    """

    strategies: tuple[str, ...]
    share: Floats
    phi: Floats
    seeds: int


def beats(one: Floats, other: Floats) -> bool:
    """Whether `one` is better by a two-sided paired t-test at 5 %: sqrt(n) mean / sd above Student's quantile.

    Args:
        one, other: (n,) Dice of each seed, n >= 2.
    """
    gain = one - other
    n, sd = len(gain), float(gain.std(ddof=1))
    if sd < 1e-12:
        return bool(gain.mean() > 1e-12)
    return bool(np.sqrt(n) * gain.mean() / sd > stats.t.ppf(1 - SIGNIFICANCE / 2, n - 1))


def penalty_matrix(scores: Scores, strategies: Sequence[str]) -> Penalties:
    """The pairwise penalty matrix. Each round after the common start is a setting, and all settings weigh the same."""
    curves = {}
    for name in strategies:
        runs = scores.runs[name]
        mean = class_means(runs.dice, np.ones((1, runs.dice.shape[2])))[0]
        curves[name] = dict(zip(runs.seeds, mean, strict=True))
    size = len(strategies)
    share, fewest = np.zeros((size, size)), []
    for i, first in enumerate(strategies):
        for j, second in enumerate(strategies):
            if i != j:
                share[i, j], seeds = _share(curves[first], curves[second])
                fewest.append(seeds)
    known = np.isfinite(share)
    summed, cells = np.where(known, share, 0.0).sum(0), known.sum(0)
    # The diagonal is always known: a column of which only that is known says nothing.
    phi = np.where((cells > 1) | (size == 1), summed / cells, np.nan)
    return Penalties(tuple(strategies), share, phi, min(fewest, default=0))


def _share(one: dict[int, Floats], other: dict[int, Floats]) -> tuple[float, int]:
    """Share of rounds in which one beats the other, and the fewest seeds of a test."""
    seeds = sorted(one.keys() & other.keys())
    won, fewest = [], []
    for number in range(1, max((len(one[seed]) for seed in seeds), default=0)):
        pairs = [(one[seed][number], other[seed][number]) for seed in seeds]
        both = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
        if len(both) >= 2:
            won.append(beats(both[:, 0], both[:, 1]))
            fewest.append(len(both))
    return (float(np.mean(won)), min(fewest)) if won else (float("nan"), len(seeds) and 1)
