"""Where a child process finds everything, and what a job there needs to do its work and to report."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import models
from datastore.volume_io import is_here
from dicom.archive import Account, Archive
from dicom.images import ArchiveImages
from loop.config import AppConfig
from loop.errors import BadInput, NotFound
from loop.rounds import Loop
from models import plans
from models.plans import Plans
from models.weights import WeightsFolder

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5
_JOB_PAUSES = (1.0, 3.0, 6.0, 10.0, 20.0, 20.0)
"""Seconds between a job's tries to reach the archive, in which it may be started anew."""


@dataclass(frozen=True)
class Workplace:
    """Where the worker finds everything; survives being sent to another process.

    Attributes:
        root: what the images' paths are relative to. state: the state folder. labels: the folder of the composite masks.
        archive: address of the DICOMweb archive that the images come from; "" where they are files of a folder.
    """

    root: Path
    state: Path
    labels: Path
    store_url: str
    config: Mapping[str, Any]
    archive: str = ""

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

    def images(self, loop: Loop, pauses: Sequence[float] = ()) -> ArchiveImages:
        """The archive's images.

        Args:
            pauses: seconds before each further try while the archive is down.
        """
        config = self.open_config()
        archive = Archive(self.archive, Account.from_environment(), timeout=config.archive_timeout, pauses=pauses)
        return ArchiveImages(archive, self.root, loop, config.archive_cache_mb << 20)

    def fetching(self, loop: Loop) -> Callable[[str], Callable[[], object]]:
        """For jobs: of an image id, what brings its file to where it is read; a job waits a while for an archive."""
        if not self.archive:
            return lambda image_id: is_here
        images = self.images(loop, _JOB_PAUSES)

        def fetch(image_id: str) -> None:
            try:
                images.fetch(image_id)
            except NotFound as error:  # gone since the job began, or annotated and then deleted: one image less
                raise BadInput(str(error)) from None

        return lambda image_id: partial(fetch, image_id)

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

    @cached_property
    def fetching(self) -> Callable[[str], Callable[[], object]]:
        """As `Workplace.fetching`."""
        return self.workplace.fetching(self.loop)

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
        self.loop.unusable(image_id, reason)
        self.warn(f"{image_id} was left out: {reason}")
