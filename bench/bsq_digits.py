"""Appendix A of the BSQ paper on scikit-learn's digits: do the picks even out an imbalanced start, or an imbalanced pool?"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

from bench.campaign.figures import COLOURS
from bench.tables import table
from loop.signals import FloatArray
from models.info_vae import info_vae
from strategies._likelihood_ratio import DiagonalGaussian, likelihood_ratio_rows
from trainers.info_vae import train
from trainers.representation import RepresentationSettings, Slices

_ROUNDS, _START, _PICKS = 30, 10, 10
_RARE_CLASSES, _RARE = 3, 0.1
_LATENTS = 5
_IN_TABLES = 5
"""All of appendix A.1, setup s1 (n_iter, n_init, n_rep; three classes ten times as rare; n_lat; experiments)."""

_DRAWS = 20
"""Of which the tables of entropies show the first five; the differences from random draws are over all."""
_POOLS = 5
"""Imbalanced pools; each has an infoVAE of its own, and draw i starts in pool i modulo five."""
_CHANNELS = (32, 64)
"""The digits have 8 x 8 pixels: two halvings."""
_EPOCHS = 100
_FLOOR = 1e-3
_SHOWN = (0, 1, 2, 3, 5, 10, 20, 30)

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """How a round's ten are chosen by eq. 7.

    Attributes:
        looked_at: how many candidates eq. 7 chooses among, drawn at random: they stand where the method has the most uncertain,
            for there is no task model here. None: all. Ten of ten are a random draw.
        refit: each pick counts as annotated when the next is chosen.
    """

    looked_at: int | None = None
    refit: bool = True


RULES: dict[str, Rule] = {
    # Two budgets are the strategy's default, and what the paper has on images (n_unc 64, n_rep 32).
    "bsq": Rule(2 * _PICKS),
    "bsq, whole pool": Rule(),
    "bsq, whole pool, no refit": Rule(refit=False),
    "random": Rule(_PICKS),
}
_MORE_RULES: Mapping[str, Rule] = RULES | {str(n): Rule(n) for n in (15, 30, 40, 80, 160)}
_BY_CANDIDATES = {"15": "15", "20": "bsq", "30": "30", "40": "40", "80": "80", "160": "160", "all": "bsq, whole pool"}
"""What the table of candidates calls them, and the rule's name among those that are measured on the even pool."""


@dataclass(frozen=True)
class Digits:
    """The images' codes (N, n_lat) and their classes (N,)."""

    latents: FloatArray
    classes: _Rows


@dataclass(frozen=True)
class Draw:
    """What all rules begin with.

    Attributes:
        pool: its number; draws of one pool are not independent.
        found: the pool.
        start: (10,) its annotated rows.
    """

    pool: int
    found: Digits
    start: _Rows


def images() -> tuple[torch.Tensor, _Rows]:
    """The 1797 digits (N, 1, 8, 8), mean 0 and standard deviation 1, and their classes."""
    pixels, classes = load_digits(return_X_y=True)
    data = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8)
    return (data - data.mean()) / data.std(), classes.astype(np.int64)


def digits(epochs: int, seed: int, rows: _Rows | None = None) -> Digits:
    """Those rows of the digits (None: all), seen by an infoVAE that was trained on them alone, without their classes."""
    data, classes = images()
    if rows is not None:
        data, classes = data[rows], classes[rows]
    learner, order, device = info_vae(8, _CHANNELS, _LATENTS), np.arange(len(data)), torch.device("cpu")
    slices = Slices(data, order, order, np.zeros_like(order), np.zeros(len(data), bool))
    weights = train(learner, slices, RepresentationSettings(epochs, seed), device, lambda **progress: None)
    network = learner.network(seed)
    network.load_state_dict(weights)
    with torch.inference_mode():
        return Digits(network.eval()(data).numpy(), classes)


def imbalanced(classes: _Rows, rng: np.random.Generator) -> _Rows:
    """(10,) rows to start with, drawn without replacement; three random classes are ten times less likely than the others."""
    rare = rng.choice(classes.max() + 1, _RARE_CLASSES, replace=False)
    weights = np.where(np.isin(classes, rare), _RARE, 1.0)
    return rng.choice(len(classes), _START, replace=False, p=weights / weights.sum())


def thinned(classes: _Rows, rng: np.random.Generator) -> _Rows:
    """Rows of a pool, ascending: a tenth of three random classes, and all of the others."""
    rare = rng.choice(classes.max() + 1, _RARE_CLASSES, replace=False)
    kept = [~np.isin(classes, rare)]
    for one in rare:
        members = np.flatnonzero(classes == one)
        chosen = rng.choice(members, max(1, round(_RARE * len(members))), replace=False)
        kept.append(np.isin(np.arange(len(classes)), chosen))
    return np.flatnonzero(np.any(kept, 0))


def even_draws(found: Digits, draws: int, seed: int = 0) -> list[Draw]:
    """The paper's: an imbalanced start in the pool of all digits. The starts are independent, given the digits."""
    return [Draw(i, found, imbalanced(found.classes, np.random.default_rng([seed, i]))) for i in range(draws)]


def thinned_draws(epochs: int, draws: int, seed: int = 0) -> list[Draw]:
    """Ours: ten rows at random from a pool that is itself imbalanced."""
    classes = images()[1]
    pools = [
        digits(epochs, seed, thinned(classes, np.random.default_rng([seed, pool, 2])))
        for pool in range(min(_POOLS, draws))
    ]

    def start(draw: int, found: Digits) -> _Rows:
        return np.random.default_rng([seed, draw]).choice(len(found.classes), _START, replace=False)

    return [Draw(i % _POOLS, pools[i % _POOLS], start(i, pools[i % _POOLS])) for i in range(draws)]


def class_entropy(classes: _Rows) -> float:
    """H(c) of some items' classes, in nats (appendix A.1)."""
    share = np.bincount(classes) / len(classes)
    share = share[share > 0]
    return float((share * np.log(1 / share)).sum())


def picks(found: Digits, rule: Rule, start: _Rows, rounds: int, rng: np.random.Generator) -> _Rows:
    """(rounds, 10) rows, by eq. 7 alone."""
    labeled = np.isin(np.arange(len(found.classes)), start)
    chosen = np.empty((rounds, _PICKS), np.int64)
    for turn in range(rounds):
        candidates = np.flatnonzero(~labeled)
        if rule.looked_at is not None:
            candidates = np.sort(rng.choice(candidates, min(rule.looked_at, len(candidates)), replace=False))
        chosen[turn], _ = likelihood_ratio_rows(
            found.latents, _PICKS, labeled=labeled, candidates=candidates, refit=rule.refit, floor=_FLOOR
        )
        labeled[chosen[turn]] = True
    return chosen


def entropies(classes: _Rows, start: _Rows, chosen: _Rows) -> list[float]:
    """H(c) of the start, and of it and all picks so far after each round; that of nothing is NaN."""
    rows = [np.concatenate([start, chosen[:turn].ravel()]) for turn in range(len(chosen) + 1)]
    return [class_entropy(classes[some]) if len(some) else float("nan") for some in rows]


def fit(latents: FloatArray, start: _Rows, chosen: _Rows) -> list[tuple[float, float]]:
    """How the annotated's Gaussian lies to the pool's, at the start and after each round (what figure A.7 shows).

    Returns:
        The distance of the means in standard deviations of the pool, and the annotated's standard deviation over the
        pool's, both means over the dimensions.
    """
    pool = DiagonalGaussian.fitted(latents)
    spread, found = pool.scale(_FLOOR), []
    for turn in range(len(chosen) + 1):
        annotated = DiagonalGaussian.fitted(latents[np.concatenate([start, chosen[:turn].ravel()])])
        gap = float((np.abs(annotated.mean - pool.mean) / spread).mean())
        found.append((gap, float((annotated.scale(_FLOOR) / spread).mean())))
    return found


Curves = Mapping[str, FloatArray]
"""(draws, rounds + 1) of each rule; draw i starts from the same items for all."""


@dataclass(frozen=True)
class Measured:
    """What the rules did, by round, from the same starts.

    Attributes:
        pools: (draws,) number of the pool of each draw.
        annotated: entropy of all that is annotated.
        picked: entropy of the picks without the start, NaN before the first round.
        gap, spread: see `fit`.
    """

    pools: _Rows
    annotated: Curves
    picked: Curves
    gap: Curves
    spread: Curves


def measure(
    draws: Sequence[Draw], *, rules: Mapping[str, Rule] = RULES, rounds: int = _ROUNDS, seed: int = 0
) -> Measured:
    """The rules on all draws."""
    found: dict[str, dict[str, list[Sequence[float]]]] = {
        what: {name: [] for name in rules} for what in ("annotated", "picked", "gap", "spread")
    }
    nothing = np.empty(0, np.int64)
    for number, draw in enumerate(tqdm(draws, desc="draws", disable=None)):
        classes = draw.found.classes
        for name, rule in rules.items():
            chosen = picks(draw.found, rule, draw.start, rounds, np.random.default_rng([seed, number, 1]))
            found["annotated"][name].append(entropies(classes, draw.start, chosen))
            found["picked"][name].append(entropies(classes, nothing, chosen))
            gap, spread = zip(*fit(draw.found.latents, draw.start, chosen), strict=True)
            found["gap"][name].append(gap)
            found["spread"][name].append(spread)
    curves = {what: {name: np.array(rows) for name, rows in of.items()} for what, of in found.items()}
    return Measured(np.array([draw.pool for draw in draws]), **curves)


def difference(values: FloatArray, others: FloatArray, pools: _Rows) -> tuple[float, float]:
    """Mean of values - others, (draws,) each, and its standard error; draws of one pool count as one, their mean."""
    means = np.array([(values - others)[pools == pool].mean() for pool in np.unique(pools)])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def _above_random(found: Measured, curves: Curves, rule: str, turns: slice) -> str:
    """Mean (standard error) of a rule's entropy less random's, mean of those rounds."""
    values, others = (curves[one][:, turns].mean(1) for one in (rule, "random"))
    mean, error = difference(values, others, found.pools)
    return f"{mean:+.3f} ({error:.3f})"


def _turns(found: Measured) -> dict[str, slice]:
    """The rounds that are shown, after the start, and the mean of all."""
    rounds = next(iter(found.annotated.values())).shape[1]
    return {str(n): slice(n, n + 1) for n in _SHOWN if 0 < n < rounds} | {"mean of all rounds": slice(1, None)}


def by_candidates(found: Measured) -> str:
    """Table: what becomes of the annotated's entropy with how many candidates eq. 7 chooses among."""
    turns = _turns(found)
    rows = [
        [candidates, *(_above_random(found, found.annotated, rule, some) for some in turns.values())]
        for candidates, rule in _BY_CANDIDATES.items()
    ]
    return table(
        f"even pool: entropy of the annotated above random's by candidates, {len(found.pools)} draws, mean (standard error)",
        ["candidates", *turns], rows,
    )  # fmt: skip


def report(found: Measured, name: str) -> str:
    """Tables: entropies of the first draws, mean (lowest-highest); of all, differences from random, and the Gaussians."""
    rounds = [n for n in _SHOWN if n < next(iter(found.annotated.values())).shape[1]]
    draws, ours = len(found.pools), [name for name in RULES if name != "random"]

    def cell(values: FloatArray) -> str:
        some = values[:_IN_TABLES]
        return f"{some.mean():.3f} ({some.min():.3f}-{some.max():.3f})"

    def entropy(title: str, curves: Curves, items: int, shown: Sequence[int]) -> str:
        rows = [[str(n), str(items + n * _PICKS), *(cell(curves[rule][:, n]) for rule in RULES)] for n in shown]
        last = ["mean of all rounds", "", *(cell(curves[rule][:, 1:].mean(1)) for rule in RULES)]
        return table(title, ["round", "items", *RULES], [*rows, last])

    compared = [
        [
            label,
            *(_above_random(found, curves, rule, some) for curves in (found.annotated, found.picked) for rule in ours),
        ]
        for label, some in _turns(found).items()
    ]
    fits = [
        [str(n), *(f"{curves[rule][:, n].mean():.3f}" for curves in (found.gap, found.spread) for rule in RULES)]
        for n in rounds
    ]
    even = f"even classes: {np.log(10):.3f}"
    return "\n".join([
        entropy(f"{name}: class entropy of the annotated, nats ({even})", found.annotated, _START, rounds),
        entropy(f"{name}: class entropy of the picks alone, nats ({even})", found.picked, 0, [n for n in rounds if n]),
        table(
            f"{name}: entropy above random's, {draws} draws, mean (standard error)",
            ["round", *(f"{what}, {rule}" for what in ("annotated", "picks") for rule in ours)], compared,
        ),
        table(
            f"{name}: the annotated's Gaussian and the pool's, {draws} draws",
            ["round", *(f"{what}, {rule}" for what in ("means apart", "spread") for rule in RULES)], fits,
        ),
    ])  # fmt: skip


def _draw_curves(axes: Axes, found: Measured, title: str) -> None:
    """Of the first five draws: the means of the annotated as lines, lowest to highest as bands; the picks alone dashed."""
    for rule, colour in zip(RULES, COLOURS, strict=False):
        values, alone = found.annotated[rule][:_IN_TABLES], found.picked[rule][:_IN_TABLES]
        x = np.arange(values.shape[1])
        axes.plot(x, values.mean(0), color=colour, label=rule)
        axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axes.plot(x, alone.mean(0), color=colour, linestyle="--", linewidth=1)
    axes.axhline(np.log(10), color="black", linestyle=":", label="even classes")
    axes.set(xlabel="round", title=title, ylim=(1.2, 2.35))


def plot(results: Mapping[str, Measured], pool_entropy: float | None, file: Path) -> None:
    """One panel for each experiment; the last also has the mean entropy of its pools."""
    figure = Figure(figsize=(5 * len(results), 3.8), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        _draw_curves(axes, found, title)
    if pool_entropy is not None:
        axes.axhline(pool_entropy, color="grey", linestyle=":", label="the pool")
    axes.plot([], [], color="grey", linestyle="--", linewidth=1, label="picks alone")
    axes.legend(loc="lower right")
    figure.axes[0].set_ylabel("class entropy, nats")
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write bsq-digits.png into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where bsq-digits.png goes")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="of the infoVAEs")
    parser.add_argument(
        "--draws", type=int, default=_DRAWS, help="starts, of which the tables of entropies show the first 5"
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of 10 picks each")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    epochs, draws, seed = chosen.epochs, chosen.draws, chosen.seed
    even, thin = even_draws(digits(epochs, seed), draws, seed), thinned_draws(epochs, draws, seed)
    results = {
        "even pool": measure(even, rules=_MORE_RULES, rounds=chosen.rounds, seed=seed),
        "imbalanced pool": measure(thin, rounds=chosen.rounds, seed=seed),
    }
    for name, found in results.items():
        print(report(found, name))
    print(by_candidates(results["even pool"]))
    pool = float(np.mean([class_entropy(draw.found.classes) for draw in thin]))
    print(f"\nMean entropy of the imbalanced pools: {pool:.3f}")
    plot(results, pool, chosen.folder / "bsq-digits.png")


if __name__ == "__main__":
    main()
