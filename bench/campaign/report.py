"""A campaign's report: one HTML page that needs nothing else, its figures as PNG, and the main of it as Markdown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.campaign import figures, gallery
from bench.campaign import report_tables as text
from bench.campaign.figures import DPI
from bench.campaign.summary import Summary
from bench.campaign.tables import Tables, read_tables
from bench.campaign.verdict import BASELINES, sentence
from loop.durable import atomic
from loop.errors import NextSliceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE, _MARKDOWN = "report.html.j2", "report.md.j2"
_WHY_NOT = {
    "differences": "there is only one strategy.",
    "penalties": "there is only one strategy.",
    "picks": "nothing has been picked after the start.",
    "thumbnails": "nothing has been picked yet, or its images or masks are not in the folders that campaign.json names.",
    "maps": "the campaign kept no maps of features.",
    "times": "no time has been recorded.",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report: PNG bytes, what it shows for those who do not see it, and its caption."""

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def source(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def write_report(folder: Path, out: Path | None = None, *, reference: str = "", seed: int = 0) -> Path:
    """Write the report of a campaign folder; figures/ and report.md, which shows some of them, beside the tables.

    Args:
        out: the page; report.html in the folder if None.
        reference: foreground_random, random, or another strategy of the campaign; "" chooses in this order.
        seed: of the resampling.

    Returns:
        The page's path.

    Raises:
        BadInput: no campaign folder, or a table that cannot be read. NotFound: no such reference.
    """
    summary = Summary.of(read_tables(folder), reference=reference, seed=seed)
    pictures, skipped = pictures_of(summary)
    for name in skipped:
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    for picture in pictures.values():
        with atomic(folder / "figures" / f"{picture.name}.png") as temporary:
            temporary.write_bytes(picture.png)
    page = out or folder / "report.html"
    told = _told(summary, pictures, skipped)
    for file, template in ((page, _PAGE), (folder / "report.md", _MARKDOWN)):
        with atomic(file) as temporary:
            temporary.write_text(_templates.get_template(template).render(told), encoding="utf-8")
    return page


# Every string that comes from the campaign is escaped: in the page by Jinja, in Markdown by the template.
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=lambda name: name == _PAGE, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def _told(summary: Summary, pictures: dict[str, Picture], skipped: dict[str, str]) -> dict[str, Any]:
    """What the templates show."""
    tables = summary.tables
    names = ("evidence", "curves", "by_round", "by_class", "needed", "penalties", "compositions", "costs", "claims")
    return {
        "title": str(tables.facts.get("title") or "Annotation campaign"),
        "facts": _facts(tables),
        "missing": tables.missing(),
        "uneven_starts": tables.uneven_starts(),
        "command": str(tables.facts.get("command", "")),
        "scale": str(tables.facts.get("scale", "")).rstrip(". "),
        "summary": summary,
        "sentences": sentences(summary),
        "tables": {name: getattr(text, name)(summary) for name in names},
        "pictures": pictures,
        "skipped": skipped,
        "penalty_note": text.penalty_note(summary),
        "least_seeds": _least_seeds(summary),
        "baselines": BASELINES,
    }


def sentences(summary: Summary) -> list[str]:
    """What may be said of each strategy, best first."""
    return [
        sentence(row.strategy, row.over_reference, summary.reference, row.seeds) + "."
        for row in summary.recommendation.evidence
        if row.strategy != summary.reference
    ]


def pictures_of(summary: Summary) -> tuple[dict[str, Picture], dict[str, str]]:
    """{name: picture}, and {name: why it is not there}."""
    made, skipped = dict[str, Picture](), dict[str, str]()
    for name, draw, alt, caption in _plan(summary):
        try:
            figure = draw()
        except NextSliceError as error:
            figure, skipped[name] = None, f"Not shown: {error}"
        if figure is None:
            skipped.setdefault(name, f"Not shown: {_WHY_NOT[name]}")
            continue
        made[name] = Picture(name, _png(figure), alt, caption)
    return made, skipped


def _plan(summary: Summary) -> Iterator[tuple[str, Callable[[], Figure | None], str, str]]:
    """Name, how to draw, alternative text and caption of each figure; data are looked at only when it is drawn."""
    tables, unit, reference = summary.tables, summary.tables.unit, summary.reference
    order = [row.strategy for row in summary.recommendation.evidence]
    ranked = list(dict.fromkeys([*summary.baselines, *order]))
    looks = figures.styles(ranked, reference)
    best = next((name for name in (summary.recommendation.strategy, *order) if name != reference), reference)
    banded = list(dict.fromkeys((reference, best)))
    band = (
        f"Bands, of {' and '.join(banded)} and of the upper bound (dashed): 95 % intervals over seeds and test patients. "
        "The patients are the same for all, so that bands may overlap where the paired differences below are clear."
    )
    yield (
        "learning-curves", lambda: figures.learning_curves(summary.curves, looks, banded, unit, "3-D Dice"),
        f"Line plot of mean 3-D Dice against annotated {unit}, a line for each strategy; its figures are in the table below.",
        f"Learning curves. {band}",
    )  # fmt: skip
    if summary.curves_2d is not None:
        flat = summary.curves_2d
        yield (
            "learning-curves-2d", lambda: figures.learning_curves(flat, looks, banded, unit, "2-D Dice"),
            f"Line plot of the mean Dice of slices against annotated {unit}, a line for each strategy.",
            f"The same with the mean Dice of slices. {band}",
        )  # fmt: skip
    labeled = {name: summary.curves[name].labeled for name in summary.names}
    yield (
        "class-curves", lambda: figures.class_curves(summary.by_class, labeled, summary.scores.labels, looks, unit),
        "Line plots of mean 3-D Dice of each class; the last round is in the table below.",
        "Learning curves of each class, without intervals.",
    )  # fmt: skip
    yield (
        "differences", lambda: figures.forest(summary.differences, looks) if summary.differences[reference] else None,
        "Points with intervals: the difference in area under the learning curve; its figures are in the table below.",
        "Difference in area under the learning curve with 95 % intervals, paired over seeds and test volumes. "
        "Right of the line is better.",
    )  # fmt: skip
    yield (
        "penalties", lambda: figures.penalties(summary.penalties) if len(tables.strategies) > 1 else None,
        "Matrix of numbers: share of rounds in which one strategy beats another; the same numbers are in the table below.",
        "Pairwise penalty matrix: share of rounds in which the row beats the column.",
    )  # fmt: skip
    headings = {
        "spread": "volumes / picks", "foreground": "foreground voxels", "empty": "without any class",
        "evenness": "evenness of classes", **{f"share_{label}": f"with {figures.short(label, 18)}" for label in tables.labels},
    }  # fmt: skip
    yield (
        "picks", lambda: None if summary.compositions.empty else figures.picked(summary.compositions, headings),
        "Matrix of numbers that describe the picks of each strategy; the same numbers are in the table below.",
        "What the picks show. Shares are of picks, but for foreground voxels, which are of the voxels picked.",
    )  # fmt: skip
    yield (
        "thumbnails", lambda: _thumbnails(summary, ranked),
        f"Small images: the first {gallery.SHOWN} picks of each strategy with the outlines of their masks.",
        f"What each strategy wanted most in the first round of its first seed, {gallery.MOST_ROWS} strategies at most; above "
        "each: volume, slice, and the strategy's own score. Outlines are the ground truth.",
    )  # fmt: skip
    yield (
        "maps", lambda: gallery.embedding_maps(tables.folder, ranked),
        "Scatter plots of the pool's features in two dimensions, with the items picked in the last round marked.",
        "Where the picks of the last round lie. Distances in such maps are not those between the features.",
    )  # fmt: skip
    yield (
        "times", lambda: None if summary.times.empty else figures.time_bars(summary.times),
        "Stacked bars: seconds of a round in choosing, sweep, training, measuring and the rest; figures in the table below.",
        "How the machine's time of a round was spent.",
    )  # fmt: skip


def _thumbnails(summary: Summary, ranked: list[str]) -> Figure | None:
    slices = gallery.picked_slices(summary.tables, ranked)
    return gallery.thumbnails(slices, summary.tables.labels) if slices else None


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    # No software version in the file: the same tables give the same bytes.
    figure.savefig(held, format="png", dpi=DPI, metadata={"Software": None})
    return held.getvalue()


def _facts(tables: Tables) -> list[tuple[str, str]]:
    """campaign.json as pairs of text, without what the page shows elsewhere."""
    shown = {key: value for key, value in tables.facts.items() if key not in ("title", "command", "scale")}
    return [
        (key.replace("_", " "), value if isinstance(value, str) else _plain(value))
        for key, value in shown.items()
        if value not in ("", None, {}, [])
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return json.dumps(value)


def _least_seeds(summary: Summary) -> int:
    """The fewest seeds that a comparison rests on."""
    compared = [row.seeds for row in summary.recommendation.evidence if row.strategy != summary.reference and row.seeds]
    return min(compared, default=0)
