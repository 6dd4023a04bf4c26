"""One run of a campaign: one strategy, one seed, round after round, with what serves doing the work.

Rounds are planned, trainings and sweeps run, by the jobs of the server's worker (`loop.worker.run`) in this process; the ground
truth stands where the composite masks would be. A run can be killed at any moment: started again, it goes on with the
step that was not finished, and comes to the same results.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.campaign.kept import UPPER_BOUND, map_file
from bench.campaign.maps import write_map
from bench.campaign.measure import Score, measure
from bench.campaign.protocol import Protocol
from bench.campaign.study import Study
from datastore.labels import voxels_of
from datastore.volume_io import read_volume, write_volume
from loop.config import AppConfig
from loop.durable import atomic
from loop.errors import NextSliceError
from loop.rounds import Loop
from loop.store import Store
from loop.submitted import Submission
from loop.worker import run as run_job
from loop.workplace import Workplace
from models import representation

_START = "random"


@dataclass(frozen=True)
class Campaign:
    """What all runs share.

    Attributes:
        out: the campaign's folder.
        conf: settings of every run, by the names of `--conf`.
        keep: leave each run's weights and signals when it is done.
        maps: seed whose runs keep a map of their last choice; None: no map.
    """

    out: Path
    study: Study
    protocol: Protocol
    conf: Mapping[str, str]
    keep: bool = False
    maps: int | None = None

    def config(self, strategy: str, seed: int, device: str) -> AppConfig:
        """Of one run. Every annotated slice trains: whoever measures has patients of its own."""
        own = {
            "unit": self.protocol.unit, "model": self.protocol.model, "seed": str(seed), "device": device,
            "train_from": {"scratch": "scratch", "finetune": "current"}[self.protocol.protocol], "validation_share": "0",
            "strategy": _START if strategy == UPPER_BOUND else strategy,
        }  # fmt: skip
        config = AppConfig.from_conf({**self.protocol.conf, **self.conf, **own}, str(self.study.images))
        if strategy == UPPER_BOUND:
            return replace(config, epochs=config.epochs * self.protocol.trainings)
        return config

    def folder(self, strategy: str, seed: int) -> Path:
        return self.out / "runs" / strategy / f"seed{seed}"

    def budgets(self, strategy: str, items: int) -> tuple[int, ...]:
        """Items annotated at the start and in each round, for a pool of that many."""
        if strategy == UPPER_BOUND:
            return (items,)
        there = self.protocol.of_pool(items)
        return (there.start, *there.budgets)

    def done(self, strategy: str, seed: int) -> int:
        """Rounds whose results are kept, the start among them."""
        return len(list(self.folder(strategy, seed).glob("round*.json")))

    def ended(self, strategy: str, seed: int) -> bool:
        """Whether the run is done, its last round and what comes after it."""
        return (self.folder(strategy, seed) / "done").is_file()


class Run:
    """One strategy and seed."""

    def __init__(self, campaign: Campaign, strategy: str, seed: int, device: str = "auto") -> None:
        self.campaign, self.strategy, self.seed = campaign, strategy, seed
        self.folder = campaign.folder(strategy, seed)
        self.state = self.folder / "state"
        self.config = campaign.config(strategy, seed, device)

    def __call__(self, told: Callable[[int], None] = lambda number: None) -> None:
        """Do what is not done yet.

        Args:
            told: called after each round with its number.

        Raises:
            NextSliceError: a job failed, with its reason.
        """
        if self.campaign.ended(self.strategy, self.seed):
            return
        self._prepare()
        # Half a sweep that was killed: the other half, in other batches, could differ in the last bit.
        shutil.rmtree(self.state / "signals", ignore_errors=True)
        store = Store(self.workplace.store_url)
        try:
            self.loop = Loop(store, self.config)
            self.loop.catalogue.sync(self.campaign.study.found(), [], self.loop.clock())
            counts = self.loop.catalogue.counts()
            items = counts["slices"] if self.config.unit == "slice" else counts["images"]
            for number, budget in enumerate(self.campaign.budgets(self.strategy, items)):
                if not self._result(number).is_file():
                    self._round(number, budget)
                told(number)
            self._map()
        finally:
            store.close()
        if not self.campaign.keep:
            shutil.rmtree(self.state)
        (self.folder / "done").touch()

    def _result(self, number: int) -> Path:
        return self.folder / f"round{number:03d}.json"

    def _prepare(self) -> None:
        """The state folder, with ground truth for composite masks and the learners that all runs share."""
        study = self.campaign.study
        masks = self.state / "labels" / "final"
        masks.mkdir(parents=True, exist_ok=True)
        for image_id in study.pool:
            target = masks / f"{image_id}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(study.answer(image_id), target)
        # Trained on the images alone and named by what they were trained on: one training does for every run.
        for learner in (name for name in representation.names() if not representation.get(name).uses_labels):
            shared, link = self.campaign.out / "learners" / learner, self.state / "models" / learner
            shared.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(shared.resolve())

    @property
    def workplace(self) -> Workplace:
        return Workplace(
            self.campaign.study.images, self.state, self.state / "labels", f"sqlite:///{self.state / 'store.sqlite'}",
            self.config.to_json(),
        )  # fmt: skip

    # --- one round

    def _round(self, number: int, budget: int) -> None:
        """Choose, annotate, train, measure; each step only if it was not done before a kill."""
        began = time.monotonic()
        planned = self._plan(number, budget)
        self._annotate(planned)
        trained = self._train()
        measuring = time.monotonic()
        scores = self._measure()
        measured = time.monotonic() - measuring
        picks = self._picks(planned["id"])
        timings = {**planned["timings"], "train_s": trained, "measure_s": measured}
        timings["other_s"] = max(0.0, time.monotonic() - began - sum(timings.values()))
        result = {
            "round": {
                "labeled": self._labeled(), "selected_by": planned["selected_by"], "candidates": planned["candidates"],
                "model": self.workplace.weights().current(),
            },
            "scores": [score.to_json() for score in scores],
            "picks": picks,
            "timings": timings,
        }  # fmt: skip
        with atomic(self._result(number)) as temporary:
            temporary.write_text(json.dumps(result))

    def _map(self) -> None:
        """Keep the map of the last choice, where it is wanted; after all results, which it thus cannot change."""
        file, planned = map_file(self.campaign.out, self.strategy, self.seed), self.loop.rounds(limit=2)
        if self.seed == self.campaign.maps and len(planned) > 1 and not file.is_file():
            write_map(file, self.workplace, self.loop, planned[0], self.seed)

    def _labeled(self) -> int:
        counts = self.loop.catalogue.counts()
        return counts["labeled_slices"] if self.config.unit == "slice" else counts["labeled_images"]

    def _plan(self, number: int, budget: int) -> dict[str, Any]:
        """The round, planned now unless it is there; and how long the sweep and the choice took."""
        name = self.strategy if number else _START
        took = 0.0
        if len(self.loop.rounds(limit=number + 1)) == number:
            took = self._job("sweep", {"strategies": [name], "budget": budget})
        found = dict(self.loop.rounds()[0])
        choosing = min(took, float(found["seconds"]))
        return found | {"timings": {"sweep_s": took - choosing, "select_s": choosing}}

    def _annotate(self, planned: Mapping[str, Any]) -> None:
        pending: dict[str, list[Any]] = {}
        for item in self.loop.round(planned["id"])["items"]:
            if item["state"] == "pending":
                pending.setdefault(item["image"], []).append(item["slice"])
        for image_id, slices in pending.items():
            self._tell(image_id, slices)

    def _tell(self, image_id: str, asked: Sequence[Any]) -> None:
        image, answer = self.loop.catalogue.image(image_id), self.campaign.study.answer(image_id)
        slices = list(range(image["n_slices"])) if None in asked else sorted(asked)
        mask = read_volume(answer).array.astype("uint8")
        classes = max(len(self.config.labels), int(mask.max())) + 1
        voxels = [row[: len(self.config.labels) + 1] for row in voxels_of(mask, image["axis"], slices, classes)]
        submission = Submission(
            annotator="truth", digest="", file=answer.name, slices=slices, ticket=None, params={}, voxels=voxels
        )
        self.loop.submitted.composed({image_id: self.loop.tell(image_id, submission)})

    def _train(self) -> float:
        """Seconds of the training; 0 if it was done before."""
        weights, newest = self.workplace.weights(), self._newest_submission()
        digest = weights.current()
        if digest is not None and weights.card(digest)["submission"] >= newest and self._all_members(digest):
            return 0.0
        return self._job("train", {})

    def _newest_submission(self) -> int:
        return max(int(row["submission"]) for row in self.loop.catalogue.listing())

    def _all_members(self, digest: str) -> bool:
        """Whether a training was not killed between the networks of an ensemble."""
        weights = self.workplace.weights()
        return len(weights.members(digest)) >= int(weights.card(digest).get("ensemble", 1))

    def _job(self, kind: str, request: Mapping[str, Any]) -> float:
        """Run a job of the server's worker here; the seconds that it took.

        Raises:
            NextSliceError: it failed, with its reason.
        """
        for left in self.loop.jobs.active(kind):
            self.loop.jobs.end(left["id"], "lost", message="the campaign was stopped while it ran")
        job = self.loop.jobs.queue(kind, kind, request, "campaign")
        began = time.monotonic()
        run_job(self.workplace, job["id"])
        ended = self.loop.jobs.get(job["id"])
        if ended["state"] != "done":
            raise NextSliceError(f"{self.strategy}, seed {self.seed}: the {kind} failed: {ended['message']}")
        return time.monotonic() - began

    def _measure(self) -> list[Score]:
        study, workplace = self.campaign.study, self.workplace
        weights = workplace.weights()
        digest = weights.current()
        assert digest is not None, "the training before published weights"
        return measure(study, workplace.spec(), weights.load(digest), self.config)

    def _picks(self, number: int) -> list[dict[str, Any]]:
        """The items of a round, and what the truth of each holds; a volume's truth is read once for all its slices."""
        items, counts = self.loop.round(number)["items"], dict[str, list[list[int]]]()
        names = ("background", *self.config.labels)
        for image_id in {item["image"] for item in items}:
            image = self.loop.catalogue.image(image_id)
            mask = read_volume(self.campaign.study.mask(image_id)).array.astype("uint8")
            counts[image_id] = voxels_of(mask, image["axis"], range(image["n_slices"]), len(names))
        return [
            {key: item[key] for key in ("rank", "image", "slice", "score")}
            | {
                f"voxels_{name}": sum(column) if item["slice"] is None else column[item["slice"]]
                for name, column in zip(names, zip(*counts[item["image"]], strict=True), strict=True)
            }
            for item in items
        ]


def _place(source: Path, target: Path) -> None:
    """The file under another name; converted where it is not .nii.gz."""
    if target.exists():
        return
    if source.name.lower().endswith(".nii.gz"):
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        beside.symlink_to(source)
        os.replace(beside, target)
        return
    volume = read_volume(source)
    write_volume(target, volume.array.astype("uint8"), volume.affine)
