"""How many labels a strategy needs to come near the upper bound, and how many it saves."""

from dataclasses import dataclass

import numpy as np

from bench.campaign.kept import UPPER_BOUND
from bench.campaign.statistics import UNKNOWN, Bootstrap, Estimate, interval, mean_labeled
from bench.campaign.tables import Floats

TARGETS = (0.90, 0.95, 0.98)
"""Shares of the upper bound's Dice."""

_MOSTLY = 0.95
"""An interval of labels saved is given where both curves reach the target in this share of the resamples."""


@dataclass(frozen=True)
class Needed:
    """Labels needed for a share of the upper bound.

    Attributes:
        dice: the share of the upper bound's mean Dice that is to be reached.
        labels: annotated units; infinity where the curve does not reach it, also as an interval's end.
        saved: per cent of the reference's labels, higher is better; NaN where one of the two does not reach it.
        reached: share of the resamples in which the curve reaches it.
    """

    strategy: str
    share: float
    dice: float
    labels: Estimate
    saved: Estimate
    reached: float


def labels_to(target: float, labeled: Floats, curve: Floats) -> float:
    """Annotated units at which a curve first reaches a Dice, linear between rounds; infinity if it never does.

    Args:
        labeled: (R,) ascending. curve: (R,).
    """
    above = np.flatnonzero(curve >= target)
    if not len(above):
        return float("inf")
    first = int(above[0])
    if first == 0:
        return float(labeled[0])
    share = (target - curve[first - 1]) / (curve[first] - curve[first - 1])
    return float(labeled[first - 1] + share * (labeled[first] - labeled[first - 1]))


def labels_needed(bootstrap: Bootstrap, strategy: str, reference: str, share: float) -> Needed | None:
    """Labels to reach a share of the upper bound, paired with the reference; None if one of the three is not measured."""
    seeds = bootstrap.seeds(strategy, reference)
    if UPPER_BOUND not in bootstrap.scores.runs or not seeds:
        return None
    bound, bounds = bootstrap.averaged(UPPER_BOUND, bootstrap.seeds(UPPER_BOUND, rounds=1), 1)
    target, targets = share * float(bound[0]), share * bounds[:, 0]
    (own, owns), (other, others) = (_labels(bootstrap, name, seeds, target, targets) for name in (strategy, reference))
    defined = np.isfinite(owns) & np.isfinite(others)
    saved = _saved(np.array([own]), np.array([other]))[0]
    ends = interval(saved, _saved(owns[defined], others[defined])) if defined.mean() >= _MOSTLY else UNKNOWN
    return Needed(
        strategy, share, target, interval(own, owns), Estimate(saved, ends.low, ends.high), float(np.isfinite(owns).mean())
    )  # fmt: skip


def _labels(
    bootstrap: Bootstrap, strategy: str, seeds: tuple[int, ...], target: float, targets: Floats
) -> tuple[float, Floats]:
    rounds = bootstrap.scores.rounds
    curve, curves = bootstrap.averaged(strategy, seeds, rounds)
    labeled = mean_labeled(bootstrap, strategy, seeds, rounds)
    each = [labels_to(goal, labeled, row) for goal, row in zip(targets, curves, strict=True)]
    return labels_to(target, labeled, curve), np.array(each)


def _saved(own: Floats, other: Floats) -> Floats:
    """Per cent of the reference's labels; NaN unless both are finite."""
    defined = np.isfinite(own) & np.isfinite(other)
    saved = np.full(own.shape, np.nan)
    saved[defined] = 100 * (1 - own[defined] / other[defined])
    return saved
