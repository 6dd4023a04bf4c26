"""Stock MONAI Label behind the least app that can be attacked as tests/test_door.py attacks ours."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

LABELS = ["organ", "vessel", "wall", "lesion"]
_SECONDS = 4
"""How long an inference takes; a network of the sample apps takes longer on a CPU."""


class Inference(InferTask):
    """Reads the image that it is told, and finds nothing in it."""

    def __init__(self, weights: Path) -> None:
        super().__init__(InferType.SEGMENTATION, LABELS, 3, "background everywhere")
        self.weights = weights

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str:
        return str(self.weights)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        image = nib.load(request["image"])
        time.sleep(_SECONDS)
        handle, file = tempfile.mkstemp(suffix=".nii.gz")
        os.close(handle)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)
        return file, {"label_names": {name: value for value, name in enumerate(LABELS, 1)}}


class Training(TrainTask):
    """Reads every label, as any training does."""

    def __init__(self) -> None:
        super().__init__("reads the labels")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        for case in datastore.datalist():
            nib.load(case["label"]).get_fdata()
        time.sleep(_SECONDS)
        return {}


class Stock(MONAILabelApp):
    """Everything else is MONAI Label's own."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.weights = Path(app_dir) / "model" / "segmentation.pt"
        self.weights.write_bytes(b"weights")
        super().__init__(app_dir, studies, dict(conf), "stock", labels=LABELS)

    def init_infers(self) -> dict[str, InferTask]:
        return {"segmentation": Inference(self.weights)}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {"segmentation": Training()}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"random": Random(), "first": First()}
