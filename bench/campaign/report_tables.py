"""The tables of a report, as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.campaign.claims import findings
from bench.campaign.effort import (
    MASK_SECONDS,
    SCRIBBLE_SPEEDUP,
    STEPS,
    annotation_hours,
    choosing_seconds,
    slices_per_unit,
)
from bench.campaign.kept import UPPER_BOUND
from bench.campaign.penalty import LEAST_SEEDS
from bench.campaign.statistics import Curve, Estimate
from bench.campaign.summary import Summary

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of each row is its heading."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def evidence(summary: Summary) -> Table:
    """Areas and differences, best first."""
    rows = []
    for row in summary.recommendation.evidence:
        pairs = [row.over_reference, row.over_random][: len(summary.baselines)]
        rows.append([row.strategy, estimate(row.area), *(estimate(one, signed=True) for one in pairs)])
    header = ["strategy", "area under the curve", *(f"above {name}" for name in summary.baselines)]
    return Table(
        "Area under the learning curve (a mean 3-D Dice) and paired differences, with 95 % intervals.", header, rows
    )


def curves(summary: Summary) -> Table:
    """Dice after each round."""
    named = {name: curve for name, curve in summary.curves.items() if name != UPPER_BOUND}
    rounds = max(len(curve.mean) for curve in named.values())
    units = max(named.values(), key=lambda curve: len(curve.labeled)).labeled
    rows = [
        [name, str(len(curve.seeds)), *_padded([estimate(one) for one in _ends(curve)], rounds)]
        for name, curve in named.items()
    ]
    bound = summary.curves.get(UPPER_BOUND)
    if bound is not None:
        rows.append(
            [
                "all labelled",
                str(len(bound.seeds)),
                *_padded([NONE] * (rounds - 1) + [estimate(_ends(bound)[0])], rounds),
            ]
        )
    header = ["strategy", "seeds", *(f"{value:g} {summary.tables.unit}" for value in units)]
    return Table("Mean 3-D Dice after each round, with 95 % intervals.", header, rows)


def by_round(summary: Summary) -> Table:
    """Differences to the reference after each round."""
    named = summary.by_round
    rounds = max((len(curve.mean) for curve in named.values()), default=0)
    rows = [
        [name, *_padded([estimate(one, signed=True) for one in _ends(curve)], rounds)] for name, curve in named.items()
    ]
    header = ["strategy", *(f"round {number}" for number in range(rounds))]
    return Table(f"Dice above {summary.reference} after each round, paired, with 95 % intervals.", header, rows)


def by_class(summary: Summary) -> Table:
    """Dice of each class after the last round."""
    rows = [
        ["all labelled" if name == UPPER_BOUND else name, *(dice(value) for value in means[-1])]
        for name, means in summary.by_class.items()
    ]
    return Table(
        "Mean 3-D Dice of each class after the last round that is there.", ["strategy", *summary.scores.labels], rows
    )


def needed(summary: Summary) -> Table:
    """Labels needed and saved."""
    rows = []
    for one in summary.needed:
        labels = "not reached" if math.isinf(one.labels.value) else _labels(one.labels)
        hours = NONE
        slices = one.labels.value * slices_per_unit(summary.tables)
        if math.isfinite(slices):
            hours = f"{annotation_hours(slices):.2g} / {annotation_hours(slices, speedup=SCRIBBLE_SPEEDUP):.2g}"
        saved = NONE if math.isnan(one.saved.value) or one.strategy == summary.reference else _saved(one.saved)
        rows.append([one.strategy, f"{one.share:.0%} ({one.dice:.3f})", labels, hours, saved, f"{one.reached:.0%}"])
    header = ["strategy", "of the upper bound (Dice)", f"{summary.tables.unit} needed", "hours: masks / scribbles",
              f"saved against {summary.reference}", "resamples that reach it"]  # fmt: skip
    caption = (
        f"Annotated {summary.tables.unit} needed for a share of the upper bound. Hours at {MASK_SECONDS:g} s for the mask of a "
        f"slice, and {SCRIBBLE_SPEEDUP:g} times faster with scribbles: they compare, they are not measured."
    )
    return Table(caption, header, rows)


def penalties(summary: Summary) -> Table:
    """The matrix as text."""
    found = summary.penalties
    rows = [
        [name, *(_percent(value) for value in row)] for name, row in zip(found.strategies, found.share, strict=True)
    ]
    rows.append(["Φ (lower is better)", *(_percent(value) for value in found.phi)])
    return Table("Share of rounds in which the row's strategy beats the column's; Φ is the column's mean.",
                 ["beats", *found.strategies], rows)  # fmt: skip


def penalty_note(summary: Summary) -> str:
    """What the number of seeds means for the test."""
    seeds = summary.penalties.seeds
    if seeds >= LEAST_SEEDS:
        return f"Paired t-tests at 5 % over {seeds} seeds or more, not corrected for the number of pairs."
    if seeds == 2:
        return "With two seeds the t-test asks for t above 12.7: a zero says that nothing could be shown, no more."
    return "With one seed there is no t-test, and the matrix is empty: repeat the campaign with three seeds or more."


def compositions(summary: Summary) -> Table:
    """What was picked."""
    found = summary.compositions
    known = {
        "picks": "picks", "per_volume": "picks a volume", "spread": "volumes / picks", "distance": "slices to the nearest pick",
        "foreground": "foreground voxels", "empty": "without any class", "evenness": "evenness of classes",
        **{f"share_{label}": f"with {label}" for label in summary.tables.labels},
    }  # fmt: skip
    columns = {column: heading for column, heading in known.items() if column in found}
    rows = [[str(name), *(number(row[column]) for column in columns)] for name, row in found.iterrows()]
    return Table("What the picks are, after the common start; means over seeds.", ["strategy", *columns.values()], rows)


def costs(summary: Summary) -> Table:
    """Seconds of the machine, and foreground that was drawn."""
    rows = []
    for name, split in summary.times.iterrows():
        gamma = summary.efficiencies.get(str(name))
        rows.append(
            [
                "all labelled" if name == UPPER_BOUND else str(name), *(number(float(split[step])) for step in STEPS),
                NONE if name == UPPER_BOUND else number(choosing_seconds(summary.tables, str(name))),
                number(gamma.rate) if gamma else NONE, f"{gamma.used:.1%}" if gamma else NONE,
            ]
        )  # fmt: skip
    header = ["strategy", "choosing", "sweep", "training", "measuring", "other", "choosing + sweep", "foreground efficiency γ",
              "foreground annotated"]  # fmt: skip
    return Table(
        "Seconds of a round (mean over rounds and seeds), and foreground efficiency (higher is better).", header, rows
    )


def claims(summary: Summary) -> Table:
    """The papers' claims beside what was found."""
    rows = [
        [
            one.claim.source, f"{one.claim.strategy} above {one.other}", estimate(one.difference, signed=True), str(one.seeds),
            one.verdict,
        ]
        for one in findings(summary.bootstrap, summary.tables.strategies)
    ]  # fmt: skip
    header = ["claimed by", "claim", "found: difference in area", "seeds", "here"]
    return Table("What the papers claim, and the paired difference here with its 95 % interval.", header, rows)


def estimate(one: Estimate, *, signed: bool = False) -> str:
    """`0.512 [0.480, 0.544]`, or a dash."""
    if math.isnan(one.value):
        return NONE
    form = "+.3f" if signed else ".3f"
    return f"{one.value:{form}}" + ("" if math.isnan(one.low) else f" [{one.low:{form}}, {one.high:{form}}]")


def dice(value: float) -> str:
    """Three decimals, or a dash."""
    return NONE if math.isnan(value) else f"{value:.3f}"


def number(value: float) -> str:
    """Three significant digits, or a dash."""
    return f"{value:.3g}" if math.isfinite(value) else NONE


def _ends(curve: Curve) -> list[Estimate]:
    each = zip(curve.mean.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True)
    return [Estimate(*ends) for ends in each]


def _padded(cells: Sequence[str], length: int) -> list[str]:
    return [*cells, *[NONE] * (length - len(cells))]


def _percent(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.0%}"


def _labels(one: Estimate) -> str:
    high = "not reached" if math.isinf(one.high) else f"{one.high:.0f}"
    return f"{one.value:.0f} [{one.low:.0f}, {high}]"


def _saved(one: Estimate) -> str:
    ends = "" if math.isnan(one.low) else f" [{one.low:+.0f}, {one.high:+.0f}]"
    return f"{one.value:+.0f} %{ends}"
