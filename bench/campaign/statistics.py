"""What the scores of a campaign say, with intervals: learning curves, areas under them, labels needed.

Intervals are of a bootstrap over seeds and over test patients, crossed: the test volumes are the same for every seed and
strategy, so that one draw of patients serves all of them, and differences are paired (Owen 2007, "The pigeonhole
bootstrap").  A bootstrap over n = 3 or 5 seeds is too narrow, by sqrt((n - 1) / n) and by the normal quantile where
Student's would be right; deviations are stretched by what is missing (Hesterberg 2015, section 4.3, for a mean), for
seeds and for patients apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from bench.campaign.scores import Scores
from bench.campaign.tables import Floats

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; NaN where there is none. The interval may end in infinity: not reached."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def class_means(dice: Floats, weights: Floats) -> Floats:
    """Mean Dice over volumes within each class, then over classes; undefined cells are left out.

    Args:
        dice: (S, R, V, C). weights: (B, V) how often each volume counts.

    Returns:
        (B, S, R).
    """
    there = np.isfinite(dice)
    total = np.einsum("bv,srvc->bsrc", weights, np.where(there, dice, 0.0), optimize=True)
    count = np.einsum("bv,srvc->bsrc", weights, there.astype(float), optimize=True)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    known = np.isfinite(means)
    summed, classes = np.where(known, means, 0.0).sum(-1), known.sum(-1)
    mean: Floats = np.divide(summed, classes, out=np.full_like(summed, np.nan), where=classes > 0)
    return mean


def area(labeled: Floats, curve: Floats) -> Floats:
    """Area under learning curves by trapezoids, divided by the range of annotated units: a mean Dice.

    Args:
        labeled: (..., R) ascending. curve: (..., R).

    Returns:
        (...) in 0..1, higher is better; NaN where no unit was annotated between the first and the last round.
    """
    steps = np.diff(labeled, axis=-1)
    total = (steps * (curve[..., 1:] + curve[..., :-1]) / 2).sum(-1)
    width = np.broadcast_to(steps.sum(-1), total.shape)
    mean: Floats = np.divide(total, width, out=np.full(total.shape, np.nan), where=width > 0)
    return mean


def stretch(n: int) -> float:
    """By how much a bootstrap over n units is too narrow; 1 for one unit, of whose spread nothing is known."""
    if n < 2:
        return 1.0
    return float(np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1) / stats.norm.ppf((1 + LEVEL) / 2))


def draws(units: int, resamples: int, rng: np.random.Generator) -> Floats:
    """(B, N) how often each unit is drawn, N draws with replacement a row."""
    counts: Floats = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)
    return counts


def interval(value: float, samples: Floats) -> Estimate:
    """A figure with the quantiles of its resamples; infinity counts as larger than any figure."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Estimate(value, float(low), float(high))


class Bootstrap:
    """Resamples of a campaign; figures of it are paired, for the same draws serve every strategy.

    Args:
        rng: draws the test patients once, and the seeds once for each set of seeds.
    """

    def __init__(self, scores: Scores, rng: np.random.Generator, resamples: int = RESAMPLES) -> None:
        self.scores, self.resamples = scores, resamples
        self._key = int(rng.integers(2**32))
        patients = int(scores.patient.max()) + 1
        self._patients = draws(patients, resamples, rng)[:, scores.patient]
        self._stretch = stretch(patients)
        self._once = cache(self._per_seed)

    def _per_seed(self, strategy: str) -> tuple[Floats, Floats]:
        """(S, R) mean Dice as it is, and (B, S, R) with patients resampled."""
        dice = self.scores.runs[strategy].dice
        return class_means(dice, np.ones((1, dice.shape[2])))[0], class_means(dice, self._patients)

    def rounds(self, *strategies: str) -> int:
        """Rounds that the longest run of each of these has, the start among them."""
        return min(int(np.isfinite(self.scores.runs[name].labeled).sum(1).max()) for name in strategies)

    def seeds(self, *strategies: str, rounds: int | None = None) -> tuple[int, ...]:
        """The seeds of which all of these have the first rounds; all rounds of the campaign if None."""
        wanted = self.scores.rounds if rounds is None else rounds
        reached = [self.scores.runs[name].reached(wanted) for name in strategies]
        return tuple(seed for seed in reached[0] if all(seed in other for other in reached[1:]))

    def averaged(
        self, strategy: str, seeds: Sequence[int], rounds: int, of: Callable[[Floats, Floats], Floats] | None = None
    ) -> tuple[Floats, Floats]:
        """A figure of each seed, averaged over seeds: as it is, (...), and resampled, (B, ...).

        Args:
            of: from annotated units (S, R) and Dice (..., S, R) to (..., S); the curve itself if None.
        """
        known = self.scores.runs[strategy]
        rows = [known.seeds.index(seed) for seed in seeds]
        plain, resampled = (curves[..., rows, :rounds] for curves in self._once(strategy))
        if of is not None:
            labeled = known.labeled[rows, :rounds]
            plain, resampled = of(labeled, plain), of(labeled, resampled)
        weights = self._seed_weights(tuple(seeds))
        value = plain.mean(0)
        by_seed = np.tensordot(weights, plain, 1)
        both = np.einsum("bs,bs...->b...", weights, resampled)
        return value, value + stretch(len(seeds)) * (by_seed - value) + self._stretch * (both - by_seed)

    def _seed_weights(self, seeds: tuple[int, ...]) -> Floats:
        rng = np.random.default_rng([self._key, *seeds])
        return draws(len(seeds), self.resamples, rng) / len(seeds)


@dataclass(frozen=True)
class Curve:
    """A learning curve, or a difference of two: (R,) annotated units, mean over seeds, and the ends of its intervals."""

    labeled: Floats
    mean: Floats
    low: Floats
    high: Floats
    seeds: tuple[int, ...]


def learning_curve(bootstrap: Bootstrap, strategy: str) -> Curve:
    """Mean Dice after each round, over the seeds that have come as far as the strategy's longest run."""
    rounds = bootstrap.rounds(strategy)
    seeds = bootstrap.seeds(strategy, rounds=rounds)
    return _curve(bootstrap, strategy, seeds, *bootstrap.averaged(strategy, seeds, rounds))


def curve_difference(bootstrap: Bootstrap, strategy: str, reference: str) -> Curve:
    """Dice above the reference's after each round that both have, paired over seeds and test volumes."""
    rounds = bootstrap.rounds(strategy, reference)
    seeds = bootstrap.seeds(strategy, reference, rounds=rounds)
    if not seeds:
        nothing = np.zeros(0)
        return Curve(nothing, nothing, nothing, nothing, ())
    (one, many), (other, others) = (bootstrap.averaged(name, seeds, rounds) for name in (strategy, reference))
    return _curve(bootstrap, strategy, seeds, one - other, many - others)


def _curve(bootstrap: Bootstrap, strategy: str, seeds: tuple[int, ...], mean: Floats, samples: Floats) -> Curve:
    ends = [interval(float(value), column) for value, column in zip(mean, samples.T, strict=True)]
    low, high = np.array([end.low for end in ends]), np.array([end.high for end in ends])
    return Curve(mean_labeled(bootstrap, strategy, seeds, len(mean)), mean, low, high, seeds)


def mean_labeled(bootstrap: Bootstrap, strategy: str, seeds: Sequence[int], rounds: int) -> Floats:
    """(R,) annotated units after each round, mean over seeds."""
    runs = bootstrap.scores.runs[strategy]
    units: Floats = runs.labeled[[runs.seeds.index(seed) for seed in seeds], :rounds].mean(0)
    return units


def auc(bootstrap: Bootstrap, strategy: str) -> Estimate:
    """Area under the learning curve, as `area`, over the seeds that are complete."""
    seeds = bootstrap.seeds(strategy)
    return interval(*_auc(bootstrap, strategy, seeds)) if seeds else UNKNOWN


def auc_difference(bootstrap: Bootstrap, strategy: str, reference: str) -> Estimate:
    """By how much the area is larger than the reference's, paired over seeds and test volumes."""
    seeds = bootstrap.seeds(strategy, reference)
    if not seeds:
        return UNKNOWN
    (one, many), (other, others) = (_auc(bootstrap, name, seeds) for name in (strategy, reference))
    return interval(one - other, many - others)


def _auc(bootstrap: Bootstrap, strategy: str, seeds: Sequence[int]) -> tuple[float, Floats]:
    value, samples = bootstrap.averaged(strategy, seeds, bootstrap.scores.rounds, area)
    return float(value), samples
