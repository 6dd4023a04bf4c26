"""The radiology app: `monailabel start_server --app apps/radiology --studies DIR`, or `nextslice serve`."""

from collections.abc import Mapping
from typing import Any

from config import DESCRIPTION, NAME, VERSION
from monailabel.interfaces.app import MONAILabelApp

from datastore.served import ServedDatastore
from infers.task import BatchInference, SegmentationInfer
from loop.assembly import Assembly
from loop.shell import ServedStrategy, SweepScoring
from server.app import install
from trainers.task import LoopTrainer


class Radiology(MONAILabelApp):
    """Wiring only: MONAI Label finds the app by this direct base class."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.parts = Assembly.of(studies, conf)
        super().__init__(
            app_dir, studies, dict(conf), NAME, DESCRIPTION, VERSION, labels=list(self.parts.config.labels)
        )

    def init_datastore(self) -> ServedDatastore:
        return self.parts.datastore

    def init_infers(self) -> dict[str, SegmentationInfer]:
        return self.parts.infers_by_name

    def init_trainers(self) -> dict[str, LoopTrainer]:
        return self.parts.trainers()

    def init_strategies(self) -> dict[str, ServedStrategy]:
        return self.parts.strategies()

    def init_scoring_methods(self) -> dict[str, SweepScoring]:
        return self.parts.scoring_methods()

    def init_batch_infer(self) -> BatchInference:
        return BatchInference()

    def infer(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        return self.parts.infer(request)

    def on_init_complete(self) -> None:
        super().on_init_complete()
        install(self.parts)
        self.parts.start()
