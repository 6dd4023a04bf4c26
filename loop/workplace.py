"""Where a child process finds everything, and what a job there needs to do its work and to report."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from loop.config import AppConfig
from loop.rounds import Loop
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
        """The configured model."""
        config = self.open_config()
        name = model_name(config)
        return models.get(name, labels=config.labels, spacing=config.spacing, patch=config.patch)

    def weights(self) -> WeightsFolder:
        """The configured model's weights."""
        return WeightsFolder(self.state / "models" / model_name(self.open_config()))


def model_name(config: AppConfig) -> str:
    """The network's name, with "auto" made plain."""
    if config.model != "auto":
        return config.model
    return "unet3d" if config.unit == "volume" else "unet2d"


class Worker:
    """One job's tools: the loop, the request, and a throttled way to report."""

    def __init__(self, workplace: Workplace, loop: Loop, job: Mapping[str, Any]) -> None:
        self.workplace, self.loop, self.job = workplace, loop, job
        self.config = workplace.open_config()
        self.spec = workplace.spec()
        self.weights = workplace.weights()
        self._reported = 0.0

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
