"""Training in MONAI Label's form: what Slicer shows and starts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monailabel.interfaces.tasks.train import TrainTask

from loop.config import AppConfig
from loop.errors import BadInput, NextSliceError
from loop.jobs import Jobs
from loop.worker import run
from loop.workplace import Workplace

_SETTABLE = ("epochs", "steps_per_epoch", "batch_size", "learning_rate", "seed", "train_from", "device")
_STOCK_NAMES = {"max_epochs": "epochs", "train_batch_size": "batch_size"}


class LoopTrainer(TrainTask):
    """The configured model's trainer; its jobs run in child processes of the conductor."""

    def __init__(self, name: str, jobs: Jobs, workplace: Workplace) -> None:
        super().__init__(f"Train {name} on all annotated slices")
        self.name, self.jobs, self.workplace = name, jobs, workplace

    def config(self) -> dict[str, Any]:
        """What a viewer may set; a list is a drop-down whose first entry is chosen."""
        config = self.workplace.open_config()
        starts = sorted(("scratch", "current"), key=lambda start: start != config.train_from)
        numbers = {
            key: getattr(config, key) for key in ("epochs", "steps_per_epoch", "batch_size", "learning_rate", "seed")
        }
        return {**numbers, "train_from": starts}

    def stats(self) -> dict[str, Any]:
        """The newest training in the fields that Slicer reads."""
        job = self.jobs.newest("train")
        if job is None:
            return {}
        progress, began = job["progress"], job["started_at"]
        curve = (job["result"] or {}).get("curve") or [progress]
        scores = [entry["dice"] for entry in curve if entry.get("dice") is not None]
        ended = job["ended_at"] or self.jobs.clock()
        return {
            "epoch": progress.get("epoch", 0),
            "total_epochs": progress.get("epochs", self.workplace.open_config().epochs),
            "best_metric": round(max(scores), 4) if scores else 0.0,
            "total_time": f"{int(ended - began)} s" if began else "",
            "state": job["state"],
        }

    def __call__(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        """Train here and now; the server uses child processes instead.

        Raises:
            NextSliceError: the training failed; the message says why.
        """
        job = self.jobs.queue("train", self.name, training_request(request, self.workplace.open_config()), "asked for")
        run(self.workplace, job["id"])
        ended = self.jobs.get(job["id"])
        if ended["state"] != "done":
            raise NextSliceError(str(ended["message"]))
        return dict(ended["result"])


def training_request(params: Mapping[str, Any], config: AppConfig) -> dict[str, Any]:
    """What a client may change of one training, checked by the configuration's own rules; other keys are not for us.

    Raises:
        BadInput: a value breaks its rule.
    """
    named = {_STOCK_NAMES.get(key, key): value for key, value in params.items()}
    request = {
        key: named[key][0] if isinstance(named[key], list) and named[key] else named[key]
        for key in _SETTABLE
        if key in named
    }
    for key, value in request.items():
        wanted = type(getattr(config, key))
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise BadInput(f"{key} must be {wanted.__name__}, got {str(value)[:40]!r}.")
    replace(config, **request).check()
    return request
