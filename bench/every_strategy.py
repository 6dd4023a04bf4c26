"""Does every strategy serve? Each gets a server of its own with nothing annotated, and a robot for two rounds.

`python -m bench.every_strategy --images DIR --truth DIR` prints a line a strategy. It served if the second round, the first
with a model, was its own choice and was annotated to its end.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

import strategies
from bench.robot import RobotError, annotate_until
from bench.serving import our_server
from bench.tables import table
from loop.config import settings_from

_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Served:
    """How it went with one strategy.

    Attributes:
        chosen_by: the strategy that chose each round, first to last.
        dice: mean Dice of each model on the patients unseen to the end.
        trouble: why it did not serve; "" if it did.
    """

    strategy: str
    chosen_by: Sequence[str]
    seconds: float
    dice: Sequence[float]
    trouble: str

    def row(self) -> list[str]:
        """For the table."""
        dice = " -> ".join(f"{value:.3f}" for value in self.dice)
        return [self.strategy, ", ".join(self.chosen_by), f"{self.seconds:.0f}", dice, self.trouble or "served"]


def serve_one(name: str, images: Path, truth: Path, conf: Mapping[str, str], budget: int, evaluate: int) -> Served:
    """Two rounds of a strategy on a fresh server, on a copy of the images."""
    began, trouble, dice = time.monotonic(), "", list[float]()
    with tempfile.TemporaryDirectory(prefix="nextslice-every-") as folder:
        studies = Path(shutil.copytree(images, Path(folder) / "studies"))
        with our_server(studies, Path(folder) / "home", {**conf, "strategy": name, "budget": str(budget)}) as server:
            try:
                dice = annotate_until(server.url, truth, name, 2 * budget, "robot", evaluate, _TIMEOUT, lambda _: None)
            except RobotError as error:
                trouble = str(error)
            rounds = [row for row in reversed(server.get("/al/rounds")) if row["strategy"] == name]
    chosen_by = [str(row["selected_by"]) for row in rounds]
    if not trouble and (chosen_by[1:2] != [name] or rounds[1]["state"] != "done"):
        trouble = "the second round was not its own, or not annotated to its end"
    return Served(name, chosen_by, time.monotonic() - began, dice, trouble)


def main(
    images: Annotated[Path, typer.Option(help="folder of images")],
    truth: Annotated[Path, typer.Option(help="folder with a ground-truth label for every image, named like the image")],
    conf: Annotated[list[str] | None, typer.Option(help="setting of the servers, KEY=VALUE; may be repeated")] = None,
    only: Annotated[list[str] | None, typer.Option(help="only this strategy; may be repeated")] = None,
    budget: Annotated[int, typer.Option(min=1, help="slices in a round")] = 10,
    evaluate: Annotated[int, typer.Option(min=0, help="volumes of unseen patients to measure Dice on")] = 4,
) -> None:
    """Serve two rounds of every strategy from an empty start, and print how it went."""
    settings = settings_from(conf or [])
    found = []
    for name in tqdm(only or strategies.names(), desc="serve", unit="strategy", disable=None):
        found.append(serve_one(name, images, truth, settings, budget, evaluate))
        tqdm.write(" | ".join(found[-1].row()))
    header = ["strategy", "rounds chosen by", "s", "mean Dice", "outcome"]
    tqdm.write(table("Every strategy, from an empty start", header, [one.row() for one in found], text=True))
    raise typer.Exit(int(any(one.trouble for one in found)))


if __name__ == "__main__":
    typer.run(main)
