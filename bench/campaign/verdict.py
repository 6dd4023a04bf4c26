"""What may be said of each strategy in a sentence, and which one to use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.campaign.effort import choosing_seconds
from bench.campaign.penalty import LEAST_SEEDS
from bench.campaign.scores import scores_of
from bench.campaign.statistics import UNKNOWN, Bootstrap, Estimate, auc, auc_difference
from bench.campaign.tables import Tables
from loop.errors import unknown

BASELINES = ("foreground_random", "random")
"""The reference, the first of these that the campaign has."""

TIE = 0.001
"""Lower bounds of Dice that differ by less are a tie, which the cost of choosing breaks."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a strategy.

    Attributes:
        area: area under its learning curve, a mean Dice.
        over_reference, over_random: by how much it is larger, paired; NaN for itself and where it is not measured.
        seeds: those that it shares with the reference.
        seconds: choosing, with its sweep, in a round.
    """

    strategy: str
    area: Estimate
    over_reference: Estimate
    over_random: Estimate
    seeds: int
    seconds: float


@dataclass(frozen=True)
class Recommendation:
    """Which strategy to use: `strategy`, or the reference where nothing is better; why; and the evidence, best first."""

    strategy: str
    reason: str
    evidence: tuple[Evidence, ...]


def reference_of(tables: Tables, wanted: str = "") -> str:
    """The strategy that all are compared with: `wanted`, else foreground_random, else random, else the first.

    Raises:
        NotFound: the wanted one is not in the campaign.
    """
    if wanted and wanted not in tables.strategies:
        raise unknown("strategy in this campaign", wanted, tables.strategies)
    there = [name for name in (wanted, *BASELINES) if name in tables.strategies]
    return (there or [*tables.strategies, ""])[0]


def recommend(
    tables: Tables, *, reference: str = "", rng: np.random.Generator | None = None, bootstrap: Bootstrap | None = None
) -> Recommendation:
    """The strategy with the best lower bound of the paired difference in area to the reference, if that is above zero.

    One seed recommends nothing: its interval does not hold the chance of training.

    Raises:
        NotFound: the wanted reference is not in the campaign.
    """
    reference = reference_of(tables, reference)
    known = bootstrap or Bootstrap(scores_of(tables), rng or np.random.default_rng(0))
    evidence = tuple(sorted(gather(tables, known, reference), key=_rank))
    better = [row for row in evidence if row.over_reference.low > 0 and row.seeds > 1]
    if not better:
        return Recommendation(reference, _none_better(evidence, reference), evidence)
    tied = [row for row in better if row.over_reference.low > better[0].over_reference.low - TIE]
    best = min(tied, key=lambda row: (row.seconds, -row.over_reference.low))
    reason = f"{sentence(best.strategy, best.over_reference, reference, best.seeds)}."
    reason += " No other has a higher lower bound of that difference." if best is better[0] else ""
    if len(tied) > 1:
        others = ", ".join(row.strategy for row in tied if row is not best)
        reason += f" Its lower bound is level with that of {others} (within {TIE} Dice), and it chooses fastest."
    return Recommendation(best.strategy, reason + _few(best.seeds), evidence)


def gather(tables: Tables, bootstrap: Bootstrap, reference: str) -> list[Evidence]:
    """What is known of every strategy that has scores."""
    rows = []
    for name in tables.strategies:
        against = {other: _against(bootstrap, name, other) for other in dict.fromkeys((reference, "random"))}
        rows.append(
            Evidence(
                name, auc(bootstrap, name), against[reference], against["random"], len(bootstrap.seeds(name, reference)),
                choosing_seconds(tables, name),
            )
        )  # fmt: skip
    return rows


def sentence(name: str, difference: Estimate, other: str, seeds: int) -> str:
    """What may be said of a strategy against another, from the paired difference of their areas."""
    count = f"{seeds} seed{'s' * (seeds != 1)}"
    if math.isnan(difference.value):
        return f"{name} is not judged against {other} yet: no seed of both is complete"
    if seeds == 1:
        return (
            f"{name} and {other} cannot be judged with one seed (difference {difference} for the test patients alone)"
        )
    if difference.low > 0:
        return f"{name} is better than {other} by {difference} Dice over the curve with {count}"
    if difference.high < 0:
        turned = Estimate(-difference.value, -difference.high, -difference.low)
        return f"{name} is worse than {other} by {turned} Dice over the curve with {count}"
    return f"{name} cannot be told from {other} with {count} (difference {difference})"


def _rank(row: Evidence) -> tuple[float, float]:
    """Best lower bound first, those without one last."""
    low = row.over_reference.low
    return (math.inf if math.isnan(low) else -low, row.seconds)


def _against(bootstrap: Bootstrap, name: str, other: str) -> Estimate:
    return auc_difference(bootstrap, name, other) if name != other and other in bootstrap.scores.runs else UNKNOWN


def _none_better(evidence: Sequence[Evidence], reference: str) -> str:
    """Why the reference is recommended."""
    judged = [row for row in evidence if not math.isnan(row.over_reference.value)]
    if not judged:
        return f"Nothing can be compared with {reference} yet: no other strategy has a complete seed in common with it."
    said = f"None is better than {reference} with this evidence"
    if all(row.seeds == 1 for row in judged):
        return (
            f"One seed shows nothing about {reference} and the others: its interval does not hold the chance of training."
            + (
                f" {judged[0].strategy} is ahead so far. Repeat with three seeds or more."
                if judged[0].over_reference.value > 0
                else " Repeat with three seeds or more."
            )
        )
    over_random = [row.strategy for row in evidence if row.over_random.low > 0 and row.seeds > 1]
    if reference != "random" and any(not math.isnan(row.over_random.value) for row in evidence):
        said += f"; better than random: {', '.join(over_random)}" if over_random else ", and none is better than random"
    return f"{said}." + _few(max(row.seeds for row in judged))


def _few(seeds: int) -> str:
    """A caution where the seeds are few."""
    return "" if seeds >= LEAST_SEEDS else " Two seeds say little about the chance of training: repeat with more."
