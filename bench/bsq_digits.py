"""Appendix A of the BSQ paper on scikit-learn's digits: do the picks even out an imbalanced start?"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

from bench.tables import table
from loop.signals import FloatArray
from models.info_vae import info_vae
from strategies._likelihood_ratio import likelihood_ratio_rows
from trainers.info_vae import train
from trainers.representation import RepresentationSettings, Slices

_DRAWS, _ROUNDS, _START, _PICKS = 5, 30, 10, 10
_RARE_CLASSES, _RARE = 3, 0.1
_LATENTS = 5
"""All of appendix A.1, setup s1 (n_lat, n_init, n_iter, n_rep, experiments; three classes ten times as rare at the start)."""

_CHANNELS = (32, 64)
"""The digits have 8 x 8 pixels: two halvings."""
_EPOCHS = 100
_FLOOR = 1e-3
_SHOWN = (0, 1, 2, 3, 5, 10, 20, 30)

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """The images' codes (N, n_lat) and their classes (N,)."""

    latents: FloatArray
    classes: _Rows


def digits(epochs: int, seed: int) -> Digits:
    """All 1797 digits, seen by an infoVAE that was trained on all of them without their classes."""
    images, classes = load_digits(return_X_y=True)
    data = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 8, 8)
    data = (data - data.mean()) / data.std()
    learner, rows, device = info_vae(8, _CHANNELS, _LATENTS), np.arange(len(data)), torch.device("cpu")
    slices = Slices(data, rows, rows, np.zeros_like(rows), np.zeros(len(data), bool))
    weights = train(learner, slices, RepresentationSettings(epochs, seed), device, lambda **progress: None)
    network = learner.network(seed)
    network.load_state_dict(weights)
    with torch.inference_mode():
        return Digits(network.eval()(data).numpy(), classes.astype(np.int64))


def imbalanced(classes: _Rows, rng: np.random.Generator) -> _Rows:
    """(10,) rows to start with, drawn without replacement; three random classes are ten times less likely than the others."""
    rare = rng.choice(classes.max() + 1, _RARE_CLASSES, replace=False)
    weights = np.where(np.isin(classes, rare), _RARE, 1.0)
    return rng.choice(len(classes), _START, replace=False, p=weights / weights.sum())


def class_entropy(classes: _Rows) -> float:
    """H(c) of some items' classes, in nats (appendix A.1)."""
    share = np.bincount(classes) / len(classes)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def entropies(found: Digits, rule: str, start: _Rows, rounds: int, rng: np.random.Generator) -> list[float]:
    """H(c) of the annotated at the start and after each round of 10 picks.

    Args:
        rule: "random", "bsq" (each pick counts as annotated when the next is chosen) or "bsq, no refit".
    """
    labeled = np.isin(np.arange(len(found.classes)), start)
    curve = [class_entropy(found.classes[labeled])]
    for _ in range(rounds):
        candidates = np.flatnonzero(~labeled)
        if rule == "random":
            picked = rng.choice(candidates, _PICKS, replace=False)
        else:
            picked, _ = likelihood_ratio_rows(
                found.latents, _PICKS, labeled=labeled, candidates=candidates, refit=rule == "bsq", floor=_FLOOR
            )
        labeled[picked] = True
        curve.append(class_entropy(found.classes[labeled]))
    return curve


Curves = Mapping[str, FloatArray]
"""(draws, rounds + 1) entropies of each rule; draw i starts from the same items for all."""


def measure(found: Digits, *, draws: int = _DRAWS, rounds: int = _ROUNDS, seed: int = 0) -> Curves:
    """All rules from the same starts."""
    curves: dict[str, list[list[float]]] = {"bsq": [], "bsq, no refit": [], "random": []}
    for draw in tqdm(range(draws), desc="draws", disable=None):
        start = imbalanced(found.classes, np.random.default_rng([seed, draw]))
        for rule, rows in curves.items():
            rows.append(entropies(found, rule, start, rounds, np.random.default_rng([seed, draw, 1])))
    return {rule: np.array(rows) for rule, rows in curves.items()}


def report(curves: Curves) -> str:
    """Mean (lowest-highest) entropy over the draws, by round."""
    rounds = [n for n in _SHOWN if n < next(iter(curves.values())).shape[1]]

    def cell(values: FloatArray) -> str:
        return f"{values.mean():.3f} ({values.min():.3f}-{values.max():.3f})"

    rows = [[str(n), str(_START + n * _PICKS), *(cell(values[:, n]) for values in curves.values())] for n in rounds]
    every = [
        "mean of all rounds", "", *(cell(values[:, 1:].mean(1)) for values in curves.values())
    ]  # fmt: skip
    title = f"Class entropy of the annotated digits in nats (even classes: {np.log(10):.3f})"
    return table(title, ["round", "annotated", *curves], [*rows, every])


def plot(curves: Curves, file: Path) -> None:
    """Means as lines, lowest to highest as bands."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for rule, values in curves.items():
        x = np.arange(values.shape[1])
        axes.plot(x, values.mean(0), label=rule)
        axes.fill_between(x, values.min(0), values.max(0), alpha=0.15)
    axes.axhline(np.log(10), color="black", linestyle=":", label="even classes")
    axes.set(xlabel="round", ylabel="class entropy, nats")
    axes.legend(loc="lower right")
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write bsq-digits.png into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where bsq-digits.png goes")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="of the infoVAE")
    parser.add_argument("--draws", type=int, default=_DRAWS, help="imbalanced starts")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of 10 picks each")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    curves = measure(digits(chosen.epochs, chosen.seed), draws=chosen.draws, rounds=chosen.rounds, seed=chosen.seed)
    print(report(curves))
    plot(curves, chosen.folder / "bsq-digits.png")


if __name__ == "__main__":
    main()
