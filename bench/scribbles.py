"""Do strokes do for masks? The same slices and steps with full masks, with strokes alone, and with two branches.

`python -m bench.scribbles --images DIR --labels DIR --scribbles DIR` trains on some patients and measures volumes of others
against their full masks. Files, training and prediction are those that serve. Names of files agree between the folders.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from tqdm import tqdm

import models
from bench.tables import table
from datastore.volume_io import read_volume
from infers.engine import Segmenter, pick_device
from models.spec import ModelSpec
from trainers import engine
from trainers.data import Case, load
from trainers.metrics import dice, dice_counts, mean_dice
from trainers.settings import Settings

STROKES, OUTSIDE = "strokes", "outside"
WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "masks, dice_ce": ("", {"loss": "dice_ce"}),
    "masks, weighted_ce": ("", {"loss": "weighted_ce"}),
    "strokes alone, partial_ce": (STROKES, {"loss": "ce"}),
    "strokes alone, dual_branch": (STROKES, {"loss": "ce", "dual_branch": True}),
    "partial_ce": (OUTSIDE, {"loss": "ce"}),
    "partial_ce, dice_ce": (OUTSIDE, {"loss": "dice_ce"}),
    "dual_branch": (OUTSIDE, {"loss": "ce", "dual_branch": True}),
    "dual_branch, dice_ce": (OUTSIDE, {"loss": "dice_ce", "dual_branch": True}),
}
"""{name: ("", masks; else scribbles, with some background outside them or without; settings)}. The first is the measure."""

_AXIS = 2
_PATIENT = re.compile(r"[Pp]atient[-_]?\d+")


@dataclass(frozen=True)
class Folders:
    """Images, full masks, and scribbles; files of one name belong together."""

    images: Path
    labels: Path
    scribbles: Path

    def volumes(self, patients: int, held: int) -> tuple[list[str], list[str]]:
        """File names of the first patients, and of those held aside, which are the last."""
        names = sorted(path.name for path in self.scribbles.iterdir() if (self.images / path.name).is_file())
        groups: dict[str, list[str]] = {}
        for name in names:
            found = _PATIENT.search(name)
            groups.setdefault(found[0] if found else name, []).append(name)
        if patients + held > len(groups):
            raise typer.BadParameter(f"There are {len(groups)} patients, {patients} + {held} were asked for.")
        people = list(groups.values())
        first, last = people[:patients], people[len(people) - held :]
        return [name for group in first for name in group], [name for group in last for name in group]

    def cases(self, names: Sequence[str], kind: str, unlabeled: int) -> Iterator[Case]:
        """Training cases of all slices; what each kind is, WAYS says."""
        for name in names:
            mask = (self.scribbles if kind else self.labels) / name
            slices = range(read_volume(mask).array.shape[_AXIS])
            mark = unlabeled if kind else None
            yield Case(
                name, self.images / name, mask, _AXIS, slices, "training", unlabeled=mark, outside=kind == OUTSIDE
            )


def score(spec: ModelSpec, weights: Mapping[str, torch.Tensor], folders: Folders, held: Sequence[str]) -> list[float]:
    """Mean Dice, then each class's, over the volumes held aside, on their own grid and against full masks."""
    segmenter = Segmenter(spec, weights, device=pick_device("auto"))
    rows = []
    for name in held:
        predicted = segmenter.predict(read_volume(folders.images / name), _AXIS)
        truth = read_volume(folders.labels / name).array.astype(np.int64)
        rows.append(dice(dice_counts(torch.from_numpy(predicted), torch.from_numpy(truth), spec.channels_out)))
    mean, classes = mean_dice(np.array(rows))
    return [mean or 0.0, *(value or 0.0 for value in classes)]


@dataclass(frozen=True)
class Result:
    """(trainings, 1 + classes) Dice, the mean over classes first, and seconds for one training with its measurement."""

    dice: npt.NDArray[np.float64]
    seconds: float

    def row(self, way: str, measure: "Result") -> list[str]:
        """A line of the table."""
        mean, *classes = self.dice.mean(axis=0)
        apart = f" ± {self.dice[:, 0].std():.3f}" if len(self.dice) > 1 else ""
        share = mean / measure.dice[:, 0].mean()
        return [
            way,
            f"{mean:.3f}{apart}",
            *(f"{value:.3f}" for value in classes),
            f"{share:.0%}",
            f"{self.seconds:.0f}",
        ]


def main(
    images: Annotated[Path, typer.Option(help="folder with volumes")],
    labels: Annotated[Path, typer.Option(help="folder with their full masks")],
    scribbles: Annotated[Path, typer.Option(help="folder with their scribbles")],
    classes: Annotated[str, typer.Option(help="names of the classes from 1, comma separated")] = "rv,myo,lv",
    unlabeled: Annotated[int, typer.Option(help="value of voxels without a stroke")] = 4,
    patients: Annotated[int, typer.Option(min=1, help="patients to train on")] = 10,
    held: Annotated[int, typer.Option(min=1, help="patients to measure on")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps of each training")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="slices in a step")] = 8,
    rate: Annotated[float, typer.Option(help="peak learning rate")] = 1e-2,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each way")] = 1,
    spacing: Annotated[float, typer.Option(help="mm to resample slices to; 0 keeps their own")] = 0.0,
    patch: Annotated[int, typer.Option(help="training patch in pixels; 0: as large as the slices")] = 0,
    only: Annotated[list[int] | None, typer.Option(help="numbers of the ways, from 0; default all")] = None,
) -> None:
    """Measure and print the table."""
    folders = Folders(images, labels, scribbles)
    names, aside = folders.volumes(patients, held)
    spec = models.get(
        "unet2d", labels=tuple(classes.split(",")), spacing=(spacing,) * 2 if spacing else (), patch=(patch,) * 2 if patch else ()
    )  # fmt: skip
    chosen = [way for number, way in enumerate(WAYS) if not only or number in only]
    data = {
        kind: load(spec, list(folders.cases(names, kind, unlabeled)))
        for kind in dict.fromkeys(WAYS[way][0] for way in chosen)
    }
    results = {}
    for way in chosen:
        kind, changes = WAYS[way]
        found, began = [], time.perf_counter()
        for seed in range(seeds):
            settings = Settings(1, steps, batch, rate, seed, **changes)
            trained = engine.train(spec, data[kind], settings, device=pick_device("auto"))
            found.append(score(spec, trained.weights, folders, aside))
        results[way] = Result(np.array(found), (time.perf_counter() - began) / seeds)
        tqdm.write(" | ".join(results[way].row(way, next(iter(results.values())))))
    header = ["way", "mean Dice", *spec.labels, f"of {chosen[0]}", "s"]
    title = f"{len(names)} volumes of {patients} patients, {steps} steps of {batch}, measured on {len(aside)} volumes"
    tqdm.write(table(title, header, [result.row(way, results[chosen[0]]) for way, result in results.items()]))


if __name__ == "__main__":
    typer.run(main)
