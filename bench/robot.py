"""A robot annotator: uses the REST API as a viewer does, and submits the ground truth of the slices it is asked for."""

import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from datastore.volume_io import SUFFIXES, Volume, read_volume, write_volume
from models.preprocess import IGNORED
from trainers.metrics import mean_dice, mean_with_error
from trainers.surface import measures

_POLL_SECONDS = 0.5

_MEASURES = ("Dice", "HD95 in mm", "MSD in mm")


class RobotError(Exception):
    """The robot cannot go on; the message says why."""


@dataclass
class Robot:
    """One annotator.

    Args:
        truth: folder with a label file, masks or scribbles, for every image, named like the image.
        say: where lines for the user go.
        exam: folder with the masks that predictions are measured against; None: `truth`.
        unlabeled: value of voxels without a stroke where the server takes scribbles, else None.
    """

    http: httpx.Client
    truth: Path
    strategy: str
    name: str
    say: Callable[[str], None] = print
    exam: Path | None = None
    unlabeled: int | None = None
    masks: dict[Path, Volume] = field(default_factory=dict)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of a GET."""
        return self._answer(self.http.get(path, params=params)).json()

    def _answer(self, response: httpx.Response) -> httpx.Response:
        if response.is_error:
            raise RobotError(
                f"{response.request.method} {response.request.url} answered {response.status_code}: {response.text[:500]}"
            )
        return response

    def true_mask(self, image_id: str, folder: Path | None = None) -> Volume:
        """The ground truth of an image, in `truth` or another folder.

        Raises:
            RobotError: there is none.
        """
        folder = folder or self.truth
        if folder / image_id not in self.masks:
            files = [folder / f"{image_id}{suffix}" for suffix in SUFFIXES]
            found = [file for file in files if file.is_file()]
            if not found:
                raise RobotError(f"There is no ground truth for {image_id!r} in {folder}.")
            self.masks[folder / image_id] = read_volume(found[0])
        return self.masks[folder / image_id]

    def next_sample(self) -> dict[str, Any]:
        """What a viewer's "Next Sample" gets; {} if nothing is left for now."""
        answer = self._answer(self.http.post(f"/activelearning/{self.strategy}", json={"client_id": self.name}))
        return dict(answer.json())

    def submit(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Paint the asked slices onto the mask so far, and send the whole volume as Slicer does."""
        truth, image_id, ask = self.true_mask(sample["id"]), sample["id"], sample["ask"]
        mask = self._mask_so_far(image_id, truth)
        for index in ask["slices"]:
            at = (slice(None),) * ask["axis"] + (index,)
            mask[at] = truth.array[at]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "label.nii.gz"
            write_volume(file, mask, truth.affine)
            return self._put(image_id, file)

    def _put(self, image_id: str, file: Path) -> dict[str, Any]:
        params = json.dumps({"client_id": self.name})
        with open(file, "rb") as data:
            answer = self.http.put(
                "/datastore/label",
                params={"image": image_id},
                data={"params": params},
                files={"label": (file.name, data)},
            )
        return dict(self._answer(answer).json())

    def _mask_so_far(self, image_id: str, truth: Volume) -> npt.NDArray[np.uint8]:
        # Of scribbles, "original" is drawn as viewers draw, not as the files of `truth` are.
        tag = "original" if self.unlabeled is None else "final"
        answer = self.http.get("/datastore/label", params={"label": image_id, "tag": tag})
        if answer.status_code == 404:
            return np.full(truth.array.shape, self.unlabeled or 0, np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "original.nii.gz"
            file.write_bytes(self._answer(answer).content)
            return read_volume(file).array.astype(np.uint8)

    def measures_of(self, model: str, image_id: str, n_classes: int) -> npt.NDArray[np.float64]:
        """(classes, 3) Dice, HD95 in mm and mean surface distance in mm of the server's prediction.

        Voxels without a class in the ground truth do not count for Dice, and are background for the distances.
        """
        answer = self.http.post(
            f"/infer/{model}",
            params={"image": image_id, "output": "image"},
            data={"params": json.dumps({"result_extension": ".nii.gz"})},
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "prediction.nii.gz"
            file.write_bytes(self._answer(answer).content)
            predicted = read_volume(file).array.astype(np.int64)
        volume = self.true_mask(image_id, self.exam)
        truth = volume.array.astype(np.int64)
        truth[truth == self.unlabeled] = IGNORED
        return measures(predicted, truth, n_classes, volume.spacing)


@dataclass
class Examiner:
    """Measures each new model on volumes of patients of whom no slice was ever annotated."""

    robot: Robot
    labels: list[str]
    volumes: list[str]
    scores: dict[str, dict[str, npt.NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def of(cls, robot: Robot, labels: list[str], n: int) -> "Examiner":
        """With n volumes drawn from the patients unseen so far, one a patient."""
        ids = sorted(robot.get("/datastore/", output="all")["objects"]) if n else []
        random.Random(0).shuffle(ids)
        return cls(robot, labels, list(itertools.islice(_unseen(robot, ids), n)))

    def examine(self, digest: str, model: str, labeled: int, number: int) -> None:
        """Print Dice and surface distances of the model on the volumes unseen so far, with standard errors over them."""
        self.volumes = list(_unseen(self.robot, self.volumes))
        bar = tqdm(self.volumes, desc="measure", unit="volume", leave=False, disable=None)
        self.scores[f"{number} {digest}"] = {v: self.robot.measures_of(model, v, len(self.labels) + 1) for v in bar}
        found = np.array(list(self.scores[f"{number} {digest}"].values())).reshape(-1, len(self.labels), len(_MEASURES))
        rng = np.random.default_rng(0)
        self.robot.say(
            f"round {number}: {labeled} slices annotated, model {digest}, mean Dice {_with_error(found[..., 0], rng)} "
            f"on {len(self.volumes)} unseen patients"
        )
        for at, name in enumerate(self.labels):
            parts = [f"{measure} {_with_error(found[:, at, i], rng)}" for i, measure in enumerate(_MEASURES)]
            self.robot.say(f"  {name}: {', '.join(parts)}")

    def summary(self) -> list[float]:
        """Mean Dice of every model on the volumes that stayed unseen to the end; comparable, unlike the lines before."""
        last = [v for v in self.volumes if all(v in scores for scores in self.scores.values())]
        if not last or not self.scores:
            return []
        means = [mean_dice(np.array([scores[v][:, 0] for v in last]))[0] for scores in self.scores.values()]
        known = [mean for mean in means if mean is not None]
        self.robot.say(
            f"On the {len(last)} patients unseen to the end, mean Dice went " + " -> ".join(_number(m) for m in known)
        )
        return known


def _unseen(robot: Robot, ids: list[str]) -> Any:
    """The images of patients without annotated slices, one a patient."""
    seen: set[str] = set()
    for image_id in ids:
        facts = robot.get(f"/al/items/{image_id}")
        if not facts["n_labeled"] and not facts["error"] and facts["patient"] not in seen:
            seen.add(facts["patient"])
            yield image_id


def _with_error(per_volume: npt.NDArray[np.float64], rng: np.random.Generator) -> str:
    """`mean +- standard error`."""
    mean, error = mean_with_error(per_volume, rng)
    return _number(mean) + ("" if error is None else f" +- {error:.3f}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def annotate_until(
    server: str,
    truth: Path,
    strategy: str,
    until: int,
    name: str,
    evaluate: int,
    timeout: float,
    say: Callable[[str], None] = print,
    exam: Path | None = None,
) -> list[float]:
    """Annotate until that many slices are done; after each new model, measure it, against `exam` or else `truth`.

    Returns:
        Mean Dice after each model on the patients unseen to the end.

    Raises:
        RobotError: the server refuses, or nothing moves for `timeout` seconds.
    """
    for option, folder in (("--truth", truth), ("--exam", exam or truth)):
        if not folder.is_dir():
            raise RobotError(f"{option} must be a folder with labels, got {str(folder)!r}.")
    with httpx.Client(base_url=server, timeout=600) as http:
        robot = Robot(http, truth, strategy, name, say, exam)
        try:
            return _run(robot, until, evaluate, timeout)
        except httpx.TransportError as error:
            raise RobotError(f"The server at {server} did not answer: {error}") from None


def _run(robot: Robot, until: int, evaluate: int, timeout: float) -> list[float]:
    progress = robot.get("/al/progress")
    robot.strategy = robot.strategy or progress["strategy"]
    robot.unlabeled = progress["unlabeled_value"]
    examiner = Examiner.of(robot, progress["labels"], evaluate)
    digest = (progress["model"] or {}).get("digest")
    number, moved = 0, time.monotonic()
    bar = tqdm(
        total=until,
        initial=min(until, progress["counts"]["labeled_slices"]),
        desc="annotate",
        unit="slice",
        disable=None,
    )
    while True:
        progress = robot.get("/al/progress")
        labeled, model = progress["counts"]["labeled_slices"], progress["model"]
        bar.update(min(until, labeled) - bar.n)
        if model and model["digest"] != digest:
            digest, number, moved = model["digest"], number + 1, time.monotonic()
            examiner.examine(digest, model["model"], labeled, number)
            continue
        if labeled >= until and not _busy(progress, robot.strategy):
            break
        sample = robot.next_sample() if labeled < until else {}
        if sample:
            robot.submit(sample)
            moved = time.monotonic()
        elif time.monotonic() - moved > timeout:
            raise RobotError(f"Nothing to annotate for {timeout:g} s. The server says: {_state(progress)}")
        else:
            time.sleep(_POLL_SECONDS)
    bar.close()
    return examiner.summary()


def _busy(progress: Mapping[str, Any], strategy: str) -> bool:
    """Whether a new model or round is on its way: a finished round is followed by either."""
    still_open = any(row["strategy"] == strategy for row in progress["rounds"])
    waiting = progress["new_slices_since_training"] > 0 and not still_open
    return bool(progress["running"]["train"] or progress["running"]["sweep"] or waiting)


def _state(progress: Mapping[str, Any]) -> str:
    last = progress["last_training"] or {}
    return f"last training {last.get('status')} {last.get('details')}, counts {progress['counts']}"


def terminal(line: str) -> None:
    """Print without tearing a progress bar."""
    tqdm.write(line, file=sys.stdout)
