"""How good is each model with all labels, after the same number of steps, on patients held aside?

`python -m bench.model_dice --images DIR --labels DIR --out OUT --conf labels=...` trains every model of `--conf model` on all
slices of the pool, as a campaign's upper bound, and prints a line a model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

import models
from bench.campaign.kept import UPPER_BOUND
from bench.campaign.protocol import Protocol
from bench.campaign.run import Campaign, Run
from bench.campaign.study import Study
from bench.tables import table
from loop.config import AppConfig, settings_from
from trainers.metrics import FloatArray, mean_with_error, measured

_DIGITS = {"dice_3d": 3, "hd95": 1, "msd": 2}
"""What is measured, and how exactly it is printed."""


def scores_of(campaign: Campaign, labels: Sequence[str], seed: int) -> Mapping[str, FloatArray]:
    """{measure: (volumes, classes)} of a run that is done; NaN where a measure says nothing."""
    result = json.loads((campaign.folder(UPPER_BOUND, seed) / "round000.json").read_text())
    found = {}
    for measure in _DIGITS:
        values = [np.nan if score[measure] is None else score[measure] for score in result["scores"]]
        found[measure] = np.array(values, float).reshape(-1, len(labels))
    return found


def train_and_measure(campaign: Campaign, seed: int) -> tuple[float, Mapping[str, FloatArray]]:
    """Seconds of the training, and the scores."""
    run = Run(campaign, UPPER_BOUND, seed)
    run()
    labels = run.config.labels
    timings: dict[str, Any] = json.loads((run.folder / "round000.json").read_text())["timings"]
    return float(timings["train_s"]), scores_of(campaign, labels, seed)


def _line(name: str, steps: int, seconds: float, scores: Mapping[str, FloatArray], labels: Sequence[str]) -> list[str]:
    rng = np.random.default_rng(0)
    found = measured(scores, labels, rng)
    mean, error = mean_with_error(scores["dice_3d"], rng)
    cells = [name, str(steps), f"{seconds:.0f}", f"{mean or 0:.3f} ({error or 0:.3f})"]
    for label in labels:
        cells += [
            f"{found[label][key]:.{digits}f} ({found[label][key + '_se']:.{digits}f})"
            for key, digits in _DIGITS.items()
        ]
    return cells


def unit_of(name: str) -> str:
    """What a model is trained on."""
    return "volume" if name.endswith("3d") else "slice"


def settings_of(name: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Those without a spacing or patch that the model cannot have: nnU-Net plans its own, and a volume has three numbers."""
    dimensions = 3 if unit_of(name) == "volume" else 2
    cannot = {key for key in ("spacing", "patch") if key in settings and settings[key].count(",") != dimensions - 1}
    return {
        key: value
        for key, value in settings.items()
        if key not in cannot | ({"spacing", "patch"} if name == "nnunet" else set())
    }


def main(
    images: Annotated[Path, typer.Option(help="folder of images")],
    labels: Annotated[Path, typer.Option(help="folder with the true mask of every image, named like the image")],
    out: Annotated[Path, typer.Option(help="folder of the runs; those that are done are not run again")],
    conf: Annotated[
        list[str] | None, typer.Option(help="setting of every training, KEY=VALUE; may be repeated")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="only this model; may be repeated")] = None,
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of split, initialisation and sampling")] = 0,
) -> None:
    """Train each model on all labels of the pool, and print how good it is."""
    settings = settings_from(conf or [])
    rows = list[list[str]]()
    for name in tqdm(only or models.names(), desc="train", unit="model", disable=None):
        unit = unit_of(name)
        own = settings_of(name, settings)
        config = AppConfig.from_conf({**own, "unit": unit, "model": name}, str(images))
        study = Study.of(images, labels, config)
        plan = Protocol(unit=unit, model=name, conf={"epochs": "1", "steps_per_epoch": str(steps)})
        seconds, scores = train_and_measure(Campaign(out / name, study, plan, own), seed)
        rows.append(_line(name, steps, seconds, scores, config.labels))
        tqdm.write(" | ".join(rows[-1]))
    header = [
        "model",
        "steps",
        "s",
        "mean Dice",
        *(f"{n} {m}" for n in config.labels for m in ("Dice", "HD95, mm", "MSD, mm")),
    ]
    tqdm.write(table(f"All labels, {len(study.test)} volumes held aside, bootstrap errors over volumes", header, rows))


if __name__ == "__main__":
    typer.run(main)
