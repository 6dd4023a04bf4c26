"""Where a child process finds everything, and what a job there needs to do its work and to report."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import models
from loop.config import AppConfig
from loop.errors import BadInput
from loop.rounds import Loop
from models import plans
from models.plans import Plans
from models.weights import WeightsFolder

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Workplace:
    """Where the worker finds everything; survives being sent to another process.

    Attributes:
        root: the studies folder. state: the state folder. labels: the folder of the composite masks.
    """

    root: Path
    state: Path
    labels: Path
    store_url: str
    config: Mapping[str, Any]

    def open_config(self) -> AppConfig:
        return AppConfig.from_json(self.config)

    def spec(self) -> models.ModelSpec:
        """The configured model.

        Raises:
            Conflict: it follows from plans, and there are none yet. BadInput: the plans are damaged, or for another setting.
        """
        config = self.open_config()
        return models.get(
            model_name(config), labels=config.labels, spacing=config.spacing, patch=config.patch, plans=self.plans()
        )

    def plans(self) -> Plans | None:
        """The campaign's plans; None if there are none yet, or the model needs none.

        Raises:
            BadInput: they are damaged, or of another configuration than the one that is set.
        """
        config = self.open_config()
        if not models.is_planned(model_name(config)):
            return None
        try:
            found = Plans.read(self.plans_file)
        except FileNotFoundError:
            return None
        if found.configuration != configuration(config):
            raise BadInput(
                f"The campaign's plans are for {found.configuration}, but {configuration(config)} is set: set "
                f"--conf nnunet {found.configuration}, or plan again: nextslice plan --again."
            )
        return found

    @property
    def plans_file(self) -> Path:
        return self.model_folder / plans.FILE

    @property
    def model_folder(self) -> Path:
        """Where the configured model's weights and plans are."""
        return self.state / "models" / model_name(self.open_config())

    def weights(self) -> WeightsFolder:
        """The configured model's weights."""
        return WeightsFolder(self.model_folder)


def model_name(config: AppConfig) -> str:
    """The network's name, with "auto" made plain."""
    if config.model != "auto":
        return config.model
    return "unet3d" if config.unit == "volume" else "unet2d"


def configuration(config: AppConfig) -> str:
    """nnU-Net's configuration, with "auto" made plain."""
    if config.nnunet != "auto":
        return config.nnunet
    return "3d_fullres" if config.unit == "volume" else "2d"


def dimension(config: AppConfig) -> int:
    """2 or 3: what the configured model looks at, known before it has plans."""
    name = model_name(config)
    if models.is_planned(name):
        return 2 if configuration(config) == "2d" else 3
    return models.get(name, labels=config.labels).spatial_dims


class Worker:
    """One job's tools: the loop, the request, and a throttled way to report."""

    def __init__(self, workplace: Workplace, loop: Loop, job: Mapping[str, Any]) -> None:
        self.workplace, self.loop, self.job = workplace, loop, job
        self.config = workplace.open_config()
        self.weights = workplace.weights()
        self._reported = 0.0

    @cached_property
    def spec(self) -> models.ModelSpec:
        """The configured model; raises as `Workplace.spec`."""
        return self.workplace.spec()

    def report(self, **progress: Any) -> None:
        """Put progress into the store, at most twice a second, and always when complete."""
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS or progress.get("fraction", 0) >= 1:
            self._reported = now
            self.loop.jobs.report(self.job["id"], **progress)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)
        self.loop.jobs.warn(self.job["id"], text)

    def unreadable(self, image_id: str, reason: str) -> None:
        """An image turned out to be unreadable: ask no more for it, and say so."""
        self.loop.catalogue.mark_unreadable(image_id, reason, self.loop.clock())
        self.warn(f"{image_id} was left out: {reason}")
