"""Does every model train and predict through a server? A robot labels, then one `/train`, and `/infer` on unseen patients.

`python -m bench.every_model --images DIR --truth DIR` prints a line a model.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from tqdm import tqdm

import models
from bench.live import Server
from bench.model_dice import settings_of, unit_of
from bench.robot import Examiner, Robot, RobotError
from bench.serving import our_server
from bench.tables import table
from loop.config import settings_from
from trainers.metrics import mean_with_error

_TIMEOUT = 3600.0
_POLL_SECONDS = 0.2


def train_and_infer(server: Server, truth: Path, model: str, slices: int, evaluate: int) -> tuple[float, str]:
    """(seconds of `/train`, mean Dice with its standard error of `/infer` on unseen patients).

    Raises:
        RobotError: the server refused, or gave nothing to annotate.
    """
    with httpx.Client(base_url=server.url, timeout=_TIMEOUT) as http:
        robot = Robot(http, truth, "random", "robot", say=lambda _: None)
        labels = robot.get("/al/progress")["labels"]
        until = time.monotonic() + _TIMEOUT
        while robot.get("/al/progress")["counts"]["labeled_slices"] < slices:
            if sample := robot.next_sample():
                robot.submit(sample)
            elif time.monotonic() > until:
                raise RobotError(f"Nothing to annotate for {_TIMEOUT:g} s.")
            else:
                time.sleep(_POLL_SECONDS)
        began = time.monotonic()
        trained = http.post(f"/train/{model}", params={"run_sync": True, "enqueue": True}, json={})
        took = time.monotonic() - began
        if trained.is_error or trained.json().get("status") != "DONE":
            raise RobotError(f"/train/{model} answered {trained.status_code}: {trained.text[:500]}")
        unseen = Examiner.of(robot, labels, evaluate).volumes
        dice = np.array([robot.measures_of(model, image_id, len(labels) + 1)[:, 0] for image_id in unseen])
    mean, error = mean_with_error(dice, np.random.default_rng(0))
    return took, f"{mean or 0:.3f} ({error or 0:.3f})"


def serve_one(model: str, images: Path, truth: Path, conf: Mapping[str, str], slices: int, evaluate: int) -> list[str]:
    """A row of the table."""
    own = {
        **settings_of(model, conf),
        "model": model,
        "unit": unit_of(model),
        "retrain": "false",
        "validation_share": "0",
        "budget": str(slices),
    }
    with tempfile.TemporaryDirectory(prefix="nextslice-model-") as folder:
        studies = Path(shutil.copytree(images, Path(folder) / "studies"))
        with our_server(studies, Path(folder) / "home", own) as server:
            took, dice = train_and_infer(server, truth, model, slices, evaluate)
    return [model, f"{took:.0f}", dice]


def main(
    images: Annotated[Path, typer.Option(help="folder of images")],
    truth: Annotated[Path, typer.Option(help="folder with a ground-truth label for every image, named like the image")],
    conf: Annotated[list[str] | None, typer.Option(help="setting of the servers, KEY=VALUE; may be repeated")] = None,
    only: Annotated[list[str] | None, typer.Option(help="only this model; may be repeated")] = None,
    slices: Annotated[int, typer.Option(min=1, help="slices to annotate before the training")] = 60,
    evaluate: Annotated[int, typer.Option(min=1, help="volumes of unseen patients to measure Dice on")] = 6,
) -> None:
    """Train every model through a server, have it predict, and print how good that is."""
    settings = settings_from(conf or [])
    rows = []
    for name in tqdm(only or models.names(), desc="serve", unit="model", disable=None):
        rows.append(serve_one(name, images, truth, settings, slices, evaluate))
        tqdm.write(" | ".join(rows[-1]))
    tqdm.write(table("Through the server", ["model", "/train, s", "mean Dice of /infer"], rows))


if __name__ == "__main__":
    typer.run(main)
