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
import torch
import typer
from tqdm import tqdm

import models
from bench.tables import table
from datastore.volume_io import read_volume
from infers.engine import Segmenter, pick_device
from models.spec import ModelSpec
from trainers import engine
from trainers.metrics import dice, dice_counts, mean_dice

WAYS: Mapping[str, tuple[bool, Mapping[str, Any]]] = {
    "masks, dice_ce": (False, {"loss": "dice_ce"}),
    "masks, weighted_ce": (False, {"loss": "weighted_ce"}),
    "scribbles, partial_ce": (True, {"loss": "ce"}),
    "scribbles, partial_ce, weighted_ce": (True, {"loss": "weighted_ce"}),
    "scribbles, dual_branch": (True, {"loss": "ce", "dual_branch": True}),
    "scribbles, dual_branch, weighted_ce": (True, {"loss": "weighted_ce", "dual_branch": True}),
}
"""{name: (whether from scribbles, settings)}; the first is what the others are compared with."""

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
        return sum(people[:patients], []), sum(people[len(people) - held :], [])

    def cases(self, names: Sequence[str], unlabeled: int | None) -> Iterator[engine.Case]:
        """Training cases with scribbles where `unlabeled` is given, else with masks; all slices."""
        for name in names:
            mask = (self.labels if unlabeled is None else self.scribbles) / name
            slices = range(read_volume(mask).array.shape[_AXIS])
            yield engine.Case(name, self.images / name, mask, _AXIS, slices, "training", unlabeled)


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
    data = {way: engine.load(spec, list(folders.cases(names, unlabeled if way else None))) for way in (False, True)}
    rows: list[list[str]] = []
    reference = 0.0
    for number, (way, (strokes, changes)) in enumerate(WAYS.items()):
        if only and number not in only:
            continue
        found, began = [], time.perf_counter()
        for seed in range(seeds):
            settings = engine.Settings(1, steps, batch, rate, seed, **changes)
            trained = engine.train(spec, data[strokes], settings, device=pick_device("auto"))
            found.append(score(spec, trained.weights, folders, aside))
        seconds = (time.perf_counter() - began) / seeds
        means = np.mean(found, axis=0)
        reference = reference or means[0]
        apart = f" ± {np.std([row[0] for row in found]):.3f}" if seeds > 1 else ""
        rows.append([way, f"{means[0]:.3f}{apart}", *(f"{mean:.3f}" for mean in means[1:]), f"{means[0] / reference:.0%}", f"{seconds:.0f}"])  # fmt: skip
        tqdm.write(" | ".join(rows[-1]))
    header = ["way", "mean Dice", *spec.labels, "of the first", "seconds"]
    share = np.mean([float((part.target < spec.channels_out).float().mean()) for part in data[True].training])
    tqdm.write(
        table(
            f"{len(names)} volumes of {patients} patients, {share:.1%} of the voxels under strokes; {steps} steps of {batch}",
            header,
            rows,
        )
    )


if __name__ == "__main__":
    typer.run(main)
