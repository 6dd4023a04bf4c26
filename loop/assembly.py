"""Puts the parts of an app together from its configuration: what MONAI Label's init_* methods return."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from monailabel.config import settings

import models
import strategies
from datastore.archive import ArchiveDatastore, parse_conditions
from datastore.folder import FolderDatastore
from datastore.predictions import StoredPredictions
from datastore.returns import Returns
from datastore.rules import ORIGINAL
from datastore.watcher import FolderWatcher
from dicom.archive import Account, checked_url
from dicom.seg_search import OrthancFeed
from infers.task import SegmentationInfer
from loop.allocation import keep_freed_memory
from loop.conductor import Conductor
from loop.config import AppConfig, is_archive
from loop.errors import BadInput, unknown
from loop.rounds import Loop
from loop.shell import ServedStrategy, SweepScoring
from loop.store import Store
from loop.workplace import Workplace, model_name
from models import heads
from models.spec import ModelSpec
from models.weights import WeightsFolder, check_plans
from trainers.task import LoopTrainer

logger = logging.getLogger(__name__)

_REQUEST_PAUSES = (0.2, 1.0)
"""Seconds between the tries to reach an archive while somebody waits for the answer."""

_STOCK_KEYS = frozenset({"server_mode"})
"""--conf keys of MONAI Label's own that an app is given too."""


@dataclass
class Assembly:
    """One app's parts, wired."""

    config: AppConfig
    store: Store
    loop: Loop
    datastore: FolderDatastore | ArchiveDatastore
    workplace: Workplace
    weights: WeightsFolder
    conductor: Conductor
    watcher: FolderWatcher | None
    returns: Returns | None = None
    predictions: StoredPredictions | None = None

    @classmethod
    def of(cls, studies: str, conf: Mapping[str, str]) -> Self:
        """The parts for a studies folder, or a DICOMweb archive.

        Raises:
            BadInput, NotFound: a setting breaks its rule, or names a strategy or model that is not there.
        """
        config = checked_config(studies, conf)
        state = config.state_dir(studies)
        _prepare_folder(state)
        settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False  # stock re-queues every scoring at every "next sample"
        settings.MONAI_LABEL_SESSION_PATH = str(state / "sessions")
        store = Store(config.store_url or f"sqlite:///{state / 'store.sqlite'}")
        loop = Loop(store, config)
        if is_archive(studies):
            return cls._of_archive(checked_url(studies), config, state, store, loop)
        datastore = FolderDatastore(Path(studies), state, loop)
        workplace = Workplace(datastore.root, state, datastore.labels, store.url, config.to_json())
        conductor = Conductor(loop, workplace, datastore.refresh, datastore.settle, datastore.quiet)
        watcher = FolderWatcher(datastore.root, datastore.is_ours, conductor.changed)
        return cls(config, store, loop, datastore, workplace, workplace.weights(), conductor, watcher)

    @classmethod
    def _of_archive(cls, url: str, config: AppConfig, state: Path, store: Store, loop: Loop) -> Self:
        workplace = Workplace(state / "archive", state, state / "labels", store.url, config.to_json(), url)
        datastore = ArchiveDatastore(workplace.images(loop, _REQUEST_PAUSES), state, loop)
        conductor = Conductor(loop, workplace, datastore.look, datastore.settle, datastore.quiet)
        found = cls(config, store, loop, datastore, workplace, workplace.weights(), conductor, None)
        if config.returns:
            feed = OrthancFeed(url, Account.from_environment(), timeout=config.archive_timeout)
            found.returns = Returns(datastore, feed, config.returns_seconds, conductor.wake)
        if config.store_predictions:
            found.predictions = StoredPredictions(datastore, found.weights, found.predicted, found.model)
        return found

    @property
    def model(self) -> str:
        """The configured model's name."""
        return model_name(self.config)

    @property
    def spec(self) -> ModelSpec:
        """The configured model; raises as `Workplace.spec`."""
        return self.workplace.spec()

    def infers(self) -> dict[str, SegmentationInfer]:
        """{model: its inference}."""
        outbox = self.workplace.state / "incoming"
        task = SegmentationInfer(self.workplace, self.weights, outbox)
        return {self.model: task}

    def trainers(self) -> dict[str, LoopTrainer]:
        """{model: its trainer}."""
        return {self.model: LoopTrainer(self.model, self.loop.jobs, self.workplace)}

    def strategies(self) -> dict[str, ServedStrategy]:
        """{served name: strategy}, the default first, because viewers choose the first unless told.

        `random` may stand for the default strategy, because OHIF asks for nothing else.
        """
        names = sorted(strategies.names(), key=lambda name: name != self.config.strategy)
        served = {name: ServedStrategy(name, self.loop, self.conductor) for name in names}
        if self.config.random_serves_default:
            served["random"] = ServedStrategy(self.config.strategy, self.loop, self.conductor)
        return served

    def scoring_methods(self) -> dict[str, SweepScoring]:
        """{strategy: its sweep}."""
        return {name: SweepScoring(name, self.conductor) for name in strategies.names()}

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Predict an image of the datastore by its id, in the form MONAI Label's app.infer answers.

        Raises:
            NotFound: no such model or image. Conflict: no weights yet, or the image is unreadable.
        """
        task, image_id = self.infer_task(str(request.get("model"))), str(request.get("image"))
        file, params = task({**request, "image": self.datastore.readable_path(image_id)})
        saved = bool(request.get("save_label"))
        if saved:
            self.datastore.save_label(image_id, file, request.get("label_tag") or ORIGINAL, {"model": params["model"]})
        return {"label": image_id if saved else file, "tag": ORIGINAL, "file": file, "params": params}

    def infer_task(self, model: str) -> SegmentationInfer:
        """The inference task of this name; raises NotFound with the known ones."""
        if model not in self.infers_by_name:
            raise unknown("model", model, self.infers_by_name)
        return self.infers_by_name[model]

    def predicted(self, image_id: str, model: str = "") -> tuple[Path, str]:
        """(file of the mask by the app's model or another, which is the caller's to remove, digest of the weights)."""
        wishes = {"image": self.datastore.readable_path(image_id), "result_extension": ".nii.gz"}
        file, params = self.infer_task(model or self.model)(wishes)
        return Path(file), str(params["model"])

    @cached_property
    def infers_by_name(self) -> dict[str, SegmentationInfer]:
        """The inference tasks, made once, so that their loaded network is shared."""
        return self.infers()

    def start(self) -> None:
        """Bring the records up to the files, watch the folder, and let the conductor begin."""
        self.workplace.plans()  # raises if they are damaged, or of another configuration
        keep_freed_memory()
        behind = self.datastore.repair()
        if behind:
            logger.info("Made %d composite masks anew after an interrupted save", len(behind))
        current = self.weights.current()
        if current and current != self.loop.current_model():
            self.loop.published(self.model, current, self.weights.card(current)["metrics"], how="found at start")
        self.store.grow_log()
        if self.watcher:
            self.watcher.start()
        self.conductor.start()
        if self.returns:
            self.returns.start()
        if self.predictions:
            self.predictions.start()

    def close(self) -> None:
        """Stop what `start` started."""
        if self.watcher:
            self.watcher.stop()
        if self.returns:
            self.returns.close()
        if self.predictions:
            self.predictions.close()
        self.conductor.close()
        self.datastore.settle()
        self.store.close()

    def rollback(self, digest: str) -> dict[str, Any]:
        """Use earlier weights again; rounds are planned anew with them.

        Raises:
            NotFound: never published. BadInput: they were trained under other plans.
        """
        card = self.weights.card(digest)
        if card.get("plans"):
            check_plans(card, self.spec.plans)
        self.weights.rollback(digest, self.loop.clock())
        self.loop.published(self.model, digest, card["metrics"], how="rolled back")
        self.conductor.wake()
        return card


def checked_config(studies: str, conf: Mapping[str, str]) -> AppConfig:
    """The configuration, with every name in it looked up.

    Raises:
        BadInput: a setting breaks its rule. NotFound: an unknown strategy or model.
    """
    config = AppConfig.from_conf(conf, studies, _STOCK_KEYS)
    if is_archive(studies):
        config = _of_series(studies, config)
    typed = {name: strategies.parse(name, texts) for name, texts in config.parameters.items()}
    config = replace(config, parameters=typed)
    for name in (config.strategy, config.cold_start):
        if name not in strategies.names():
            raise unknown("strategy", name, strategies.names())
    if strategies.get(config.cold_start).needs:
        raise BadInput(f"cold_start must be a strategy that needs no model, got {config.cold_start!r}.")
    _check_model(config)
    if config.unit == "slice" and config.slices_per_ticket > config.budget:
        logger.info("slices_per_ticket (%d) is above budget (%d)", config.slices_per_ticket, config.budget)
    logger.info(
        "Model %s, default strategy %s, labels %s", model_name(config), config.strategy, ", ".join(config.labels)
    )
    return config


def _of_series(url: str, config: AppConfig) -> AppConfig:
    """The configuration for an archive, where a slice is an instance of its series; raises BadInput if it cannot be."""
    checked_url(url)
    parse_conditions(config.archive_conditions)
    if not config.archive_modalities:
        raise BadInput("archive_modalities must name at least one modality, such as CT,MR.")
    if config.axis not in ("auto", "2"):
        raise BadInput(
            f"axis must be auto or 2 with an archive, where slices are images of a series, got {config.axis!r}."
        )
    return replace(config, axis="2")


def check_plans_of(studies: str, config: AppConfig) -> None:
    """Raise BadInput if the campaign has plans that are damaged, or of another configuration than the one that is set."""
    Workplace(Path(studies), config.state_dir(studies), Path(), "", config.to_json()).plans()


def _check_model(config: AppConfig) -> None:
    """Raise NotFound or BadInput for a model that is not there, or cannot be as configured."""
    name = model_name(config)
    if models.is_planned(name):
        if config.spacing or config.patch:
            raise BadInput(f"The model {name!r} takes spacing and patch from its plans: leave the settings empty.")
        return
    spec = models.get(name, labels=config.labels, spacing=config.spacing, patch=config.patch)
    heads.check({*config.heads, *strategies.get(config.strategy).needs_heads}, spec)


def _prepare_folder(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
        probe = state / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise BadInput(
            f"The state folder {state} cannot be written ({error.strerror}). Choose another with --conf state FOLDER."
        ) from None
