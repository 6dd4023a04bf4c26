"""Do duplicates crowd the batch? A hundred items of the pool show the same slice, or one volume; who picks how many.

`python -m bench.redundancy` repeats appendix E of the USIM paper on phantoms. Files, training, sweep and strategies are
those that serve; the planted rare structure is the phantoms' lesion.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

import models
import strategies
from bench.phantom import LABELS, write_phantoms
from bench.tables import table
from datastore.volume_io import read_volume
from infers.engine import PoolViews, Segmenter, pick_device
from infers.source import Source
from loop.pool import BoolArray, IntArray, ItemTable, Pool
from loop.signals import FloatArray, PoolMean, Signal, sweep, sweep_mean
from strategies._topk import top_k
from strategies.usim_f import UsimF
from trainers import engine
from trainers.data import Case
from trainers.settings import Settings

RARE = "lesion"
NORMALIZED = "usim_f, normalize"
COMPARED: Mapping[str, tuple[str, Mapping[str, bool]]] = {
    "usim_f": ("usim_f", {}),
    NORMALIZED: ("usim_f", {"normalize": True}),
    **{name: (name, {}) for name in ("usim_c", "random", "max_entropy", "bald", "badge", "core_set")},
}
UNIFORM = "uniform from usim_f's query set"
TOP = "top of usim_f's uncertainty"
CLAIM = 0.5
"""The most that usim_f's duplicates may be of those of uniform sampling from its query set."""

_AXIS = 2
_ROUND = 1


class Rule(StrEnum):
    """What is duplicated, chosen on the pool as it is before."""

    slice = "the most uncertain slice"
    volume = "the volume of the most uncertain slice"
    wanted = "usim_f's first pick"


@dataclass(frozen=True)
class Setup:
    """How large it all is.

    Attributes:
        start: annotated slices that the model is trained on.
        budget: items that a strategy picks.
        copies: pool items that are duplicates of each other, the original included.
        steps: of training, in an epoch.
        shape: (X, Y, Z) voxels of the volumes; None: the phantoms' own.
    """

    patients: int
    start: int
    budget: int
    copies: int
    epochs: int
    steps: int
    seeds: int
    shape: tuple[int, int, int] | None = None


FULL = Setup(patients=20, start=20, budget=50, copies=100, epochs=12, steps=25, seeds=5)
QUICK = Setup(patients=4, start=10, budget=12, copies=50, epochs=3, steps=15, seeds=1, shape=(48, 48, 20))


@dataclass(frozen=True)
class Picked:
    """What one strategy picked with one seed.

    Attributes:
        duplicates: picks that are duplicates of each other.
        rare: different slices with the rare structure among the picks; a second copy does not count.
        query: share of duplicates in usim_f's query set.
        before: whether it picked the original, or a slice of it, when there were no copies; None where nobody asked.
    """

    rule: Rule
    seed: int
    strategy: str
    duplicates: int
    rare: int
    query: float
    before: bool | None


@dataclass(frozen=True)
class Study:
    """Phantoms on disk, and what their ground truth says of each pool row."""

    images: Sequence[Path]
    masks: Sequence[Path]
    volume: IntArray
    position: IntArray
    voxels: IntArray
    """(N, C) voxels of each class, background first."""

    @property
    def rare(self) -> BoolArray:
        """(N,) whether the slice shows the rare structure."""
        shows: BoolArray = self.voxels[:, 1 + LABELS.index(RARE)] > 0
        return shows


def phantom_study(folder: Path, patients: int, seed: int, shape: tuple[int, int, int] | None = None) -> Study:
    """Write phantoms, of whose patients a third have the rare structure, in two to four slices each."""
    ids = write_phantoms(folder, patients=patients, seed=seed, shape=shape)
    images, masks = ([folder / kind / f"{name}.nii.gz" for name in ids] for kind in ("images", "labels"))
    counts = [_voxels(read_volume(mask).array) for mask in masks]
    lengths = [len(count) for count in counts]
    return Study(
        images,
        masks,
        np.repeat(np.arange(len(ids)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate(counts),
    )


def _voxels(mask: np.ndarray) -> IntArray:
    """(slices, C) voxels of each class."""
    slices = np.moveaxis(mask, _AXIS, 0).reshape(mask.shape[_AXIS], -1)
    return np.stack([(slices == value).sum(1) for value in range(len(LABELS) + 1)], axis=1)


def start_set(rare: BoolArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` rows at random, at least one of which shows the rare structure, so that no class is unknown to the model."""
    first = rng.choice(np.flatnonzero(rare))
    others = rng.permutation(np.delete(np.arange(len(rare)), first))
    return np.sort(np.append(others[: count - 1], first))


def pool_of(study: Study, labeled: IntArray) -> Pool:
    """All slices, some labelled."""
    marked = np.zeros(len(study.volume), bool)
    marked[labeled] = True
    items = ItemTable([path.name for path in study.images], study.volume, study.position)
    held = np.zeros(len(marked), bool)
    return Pool(items, marked, held, study.volume, study.volume, study.position, study.voxels[labeled].sum(0))


def duplicated(rule: Rule, pool: Pool, uncertainties: FloatArray, first: int) -> IntArray:
    """The rows that the rule duplicates.

    Args:
        uncertainties: (M,) of the candidates, class-weighted as in usim_f.
        first: the row that usim_f picks first.
    """
    row = first if rule is Rule.wanted else int(pool.candidates[uncertainties.argmax()])
    if rule is Rule.volume:
        same: IntArray = pool.candidates[pool.volume[pool.candidates] == pool.volume[row]]
        return same
    return np.array([row])


def with_copies(pool: Pool, rows: IntArray, count: int) -> tuple[Pool, IntArray]:
    """The pool with `count` more items at its end, copies of `rows` in turns, and the row that each item shows, (N + count,).

    All rows are of one volume; every turn is a volume of its own, of the same patient.
    """
    shown = np.append(np.arange(len(pool)), np.resize(rows, count))
    added = shown[len(pool) :]
    turn = np.arange(count) // len(rows)
    names = [*pool.items.image_ids]
    volume = np.append(pool.volume, len(names) + turn)
    names += [f"{names[pool.volume[rows[0]]]} copy {number}" for number in range(turn.max(initial=-1) + 1)]
    position = pool.position[shown]
    no = np.zeros(count, bool)
    larger = replace(
        pool,
        items=ItemTable(names, volume, position),
        labeled=np.append(pool.labeled, no),
        held=np.append(pool.held, no),
        volume=volume,
        patient=np.append(pool.patient, pool.patient[added]),
        position=position,
    )
    return larger, shown


def uniform_picks(candidates: IntArray, query: IntArray, k: int, rng: np.random.Generator) -> IntArray:
    """k different rows of a query set, each as likely as the others however often it was drawn into the set."""
    picks: IntArray = rng.choice(candidates[np.unique(query)], k, replace=False)
    return picks


def trained(study: Study, labeled: IntArray, setup: Setup, seed: int) -> Segmenter:
    """The default network, trained on the labelled slices' ground truth."""
    spec = models.get("unet2d", labels=LABELS)
    cases = [
        Case(
            study.images[number].name,
            study.images[number],
            study.masks[number],
            _AXIS,
            study.position[labeled[study.volume[labeled] == number]].tolist(),
            "training",
        )
        for number in np.unique(study.volume[labeled])
    ]
    settings = Settings(setup.epochs, setup.steps, batch_size=8, learning_rate=3e-3, seed=seed)
    device = pick_device("auto")
    weights = engine.train(spec, cases, settings, device=device).weights
    return Segmenter(spec, weights, device=device, seed=seed)


class Swept:
    """What strategies need of a pool, as the server computes it: swept where it is not known yet.

    Args:
        known: signals of the first rows of the pool.
    """

    def __init__(
        self, segmenter: Segmenter, pool: Pool, paths: Sequence[Path], known: Mapping[str, FloatArray] | None = None
    ) -> None:
        sources = [Source(name, path, _AXIS) for name, path in zip(pool.items.image_ids, paths, strict=True)]
        self.pool, self.signals = pool, dict[str, FloatArray]()
        self._views = PoolViews(segmenter, pool, sources, unreadable=_unreadable)
        self._known = known or {}

    def ask(self, strategy: strategies.Strategy, k: int, seed: int) -> IntArray:
        """The rows that the strategy picks."""
        while wanted := strategy.wants(self.pool, self.signals, k, seed=seed, round_no=_ROUND):
            self.compute(wanted)
        return strategy.ask(self.pool, self.signals, k, seed=seed, round_no=_ROUND).rows

    def compute(self, needs: Sequence[strategies.Need]) -> None:
        """Signals in one sweep, and means."""
        rowwise = [need for need in needs if isinstance(need, Signal) and need.name not in self.signals]
        known = [need for need in rowwise if need.name in self._known]
        new = [need for need in rowwise if need.name not in self._known]
        if known:
            start = len(self._known[known[0].name])
            for name, values in self._sweep(known, np.arange(start, len(self.pool))).items():
                self.signals[name] = np.concatenate([self._known[name], values])
        if new:
            self.signals |= self._sweep(new, np.arange(len(self.pool)))
        self.signals |= {need.name: sweep_mean(self._views, need) for need in needs if isinstance(need, PoolMean)}

    def _sweep(self, needs: Sequence[Signal], rows: IntArray) -> dict[str, FloatArray]:
        """Of each row, in the order of `rows`, which ascend."""
        found, parts = list[IntArray](), list[Mapping[str, FloatArray]]()

        def keep(at: IntArray, values: Mapping[str, FloatArray]) -> None:
            found.append(at)
            parts.append(values)

        sweep(self._views, needs, rows, keep)
        order = np.argsort(np.concatenate(found))
        return {need.name: np.concatenate([part[need.name] for part in parts])[order] for need in needs}


def _unreadable(image_id: str, reason: str) -> None:
    raise RuntimeError(f"{image_id}: {reason}")


def measure(setup: Setup, seed: int, folder: Path) -> Iterator[Picked]:
    """What everybody picks, rule by rule. The seed is that of the phantoms, of what is labelled, of training and of choosing."""
    study = phantom_study(folder, setup.patients, seed, setup.shape)
    labeled = start_set(study.rare, setup.start, np.random.default_rng(seed))
    segmenter = trained(study, labeled, setup, seed)
    compared = {label: strategies.get(name, parameters) for label, (name, parameters) in COMPARED.items()}
    shared = {need.name: need for strategy in compared.values() for need in strategy.needs}
    plain = Swept(segmenter, pool_of(study, labeled), study.images)
    plain.compute(tuple(shared.values()))
    known = {name: plain.signals[name] for name in shared}
    before = {name: plain.ask(strategy, setup.budget, seed) for name, strategy in compared.items()}
    uncertainties = UsimF().uncertainties(plain.pool, plain.signals)
    for rule in Rule:
        rows = duplicated(rule, plain.pool, uncertainties, int(before["usim_f"][0]))
        pool, shown = with_copies(plain.pool, rows, setup.copies - len(rows))
        path = study.images[plain.pool.volume[rows[0]]]
        more = len(pool.items.image_ids) - len(study.images)
        swept = Swept(segmenter, pool, [*study.images, *[path] * more], known)
        for name, picks, query in _picks(swept, compared, setup.budget, seed):
            slices = np.unique(shown[picks])
            yield Picked(
                rule,
                seed,
                name,
                duplicates=int(np.isin(shown[picks], rows).sum()),
                rare=int(study.rare[slices].sum()),
                query=float(np.isin(shown[query], rows).mean()),
                before=bool(np.isin(before[name], rows).any()) if name in before else None,
            )


def _picks(
    swept: Swept, compared: Mapping[str, strategies.Strategy], k: int, seed: int
) -> Iterator[tuple[str, IntArray, IntArray]]:
    """(who, rows picked, rows of usim_f's query set) of the strategies, and of what usim_f is compared with."""
    usim, pool = UsimF(), swept.pool
    swept.compute(usim.needs)
    query = usim.query_set(pool, swept.signals, k, np.random.default_rng([seed, _ROUND]))
    rng = np.random.default_rng(seed)
    for name, strategy in compared.items():
        yield name, swept.ask(strategy, k, seed), pool.candidates[query]
    yield UNIFORM, uniform_picks(pool.candidates, query, k, rng), pool.candidates[query]
    best = top_k(usim.uncertainties(pool, swept.signals), k, rng)
    yield TOP, pool.candidates[best], pool.candidates[query]


def ratio(found: Sequence[Picked], rule: Rule, strategy: str = "usim_f") -> float:
    """The strategy's duplicates over those of uniform sampling from usim_f's query set, all seeds together."""
    ours, uniform = (
        sum(picked.duplicates for picked in found if picked.rule is rule and picked.strategy == name)
        for name in (strategy, UNIFORM)
    )
    return ours / uniform if uniform else float("nan")


def report(found: Sequence[Picked], setup: Setup) -> str:
    """A table for each rule, and what it says of the claim."""
    return "\n".join(_of_rule([picked for picked in found if picked.rule is rule], setup) for rule in Rule)


def _of_rule(found: Sequence[Picked], setup: Setup) -> str:
    rule, seeds = found[0].rule, len({picked.seed for picked in found})
    names = list(dict.fromkeys(picked.strategy for picked in found))
    rows = [_row([picked for picked in found if picked.strategy == name], setup.budget) for name in names]
    title = f"{setup.copies} items of the pool show {rule.value}; {setup.budget} picks, {seeds} seed{'s' * (seeds > 1)}"
    header = ["strategy", "duplicates, mean (min-max)", "picks with the rare structure", "picked it without copies"]
    value = ratio(found, rule)
    verdict = "at most" if value <= CLAIM else "more than"
    query = np.mean([picked.query for picked in found])
    return (
        f"{table(title, header, rows)}\n\nDuplicates in usim_f's query set: {query:.0%}. "
        f"usim_f / uniform: {value:.2f}, {verdict} {CLAIM}; with `normalize`: {ratio(found, rule, NORMALIZED):.2f}."
    )


def _row(found: Sequence[Picked], budget: int) -> list[str]:
    counts = [picked.duplicates for picked in found]
    rare = np.mean([picked.rare / budget for picked in found])
    before = [picked.before for picked in found if picked.before is not None]
    return [
        found[0].strategy,
        f"{np.mean(counts):.1f} ({min(counts)}-{max(counts)})",
        f"{rare:.0%}",
        f"{sum(before)} of {len(before)}" if before else "",
    ]


def main(
    seeds: Annotated[int | None, typer.Option(min=1, help="how many seeds; 5, or 1 with --quick")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer patients, less training, fewer picks")] = False,
) -> None:
    """Show how many duplicates each strategy picks."""
    setup = QUICK if quick else FULL
    found = list[Picked]()
    total = (seeds or setup.seeds) * len(Rule) * (len(COMPARED) + 2)
    with tqdm(total=total, desc="redundancy", unit="choice", disable=None) as bar:
        for seed in range(seeds or setup.seeds):
            with tempfile.TemporaryDirectory(prefix="nextslice-redundancy-") as folder:
                for picked in measure(setup, seed, Path(folder) / "phantoms"):
                    found.append(picked)
                    bar.update()
    tqdm.write(report(found, setup))


if __name__ == "__main__":
    typer.run(main)
