"""Inference in MONAI Label's form: a volume in, a mask file for the viewer out."""

import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from datastore.volume_io import ITK, NIFTI, read_volume, write_volume
from infers.engine import Segmenter, pick_device
from loop.errors import BadInput, Conflict
from loop.workplace import Workplace, dimension, model_name
from models.weights import WeightsFolder

RESULT_SUFFIXES = (*NIFTI, *ITK)
RESULT_TYPES = ("uint8", "int16", "uint16", "int32", "float32")


class SegmentationInfer(InferTask):
    """The configured model with its current weights.

    Args:
        workplace: says what the model is, at each change of weights: one that follows from plans is none before the first.
        outbox: folder for result files; the server deletes them after sending.
    """

    def __init__(self, workplace: Workplace, weights: WeightsFolder, outbox: Path) -> None:
        config = workplace.open_config()
        self.name = model_name(config)
        super().__init__(
            type=InferType.SEGMENTATION,
            # The segments that a viewer starts with.
            labels=config.viewer_values(),
            dimension=dimension(config),
            description=f"{self.name}: the model that NextSlice trains on the annotated slices",
        )
        self.workplace, self.weights, self.app_config, self.outbox = workplace, weights, config, outbox
        self._lock = threading.Lock()
        self._loaded: tuple[str, Segmenter] | None = None

    def info(self) -> dict[str, Any]:
        """What viewers are told, and of a model that follows from plans, those."""
        plans = self.workplace.plans()
        return {**super().info(), **({"plans": plans.summary()} if plans else {})}

    def is_valid(self) -> bool:
        """Whether there are weights to predict with; viewers are shown valid models only."""
        return self.weights.current() is not None

    def get_path(self, validate: bool = True) -> str | None:
        """The current weights' file."""
        digest = self.weights.current()
        return str(self.weights.path(digest)) if digest else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Predict the mask of request["image"], a path that the server has resolved.

        Request keys: result_extension (.nrrd by default), result_dtype (uint8), result_compress is always on for .nii.gz.

        Returns:
            The mask's file, and {"label_names": {name: value}, "model": digest} in the order of the values.

        Raises:
            BadInput: the volume cannot be read, or no such result type. Conflict: there are no weights yet.
        """
        suffix, dtype = _result_form(request)
        volume = read_volume(Path(request["image"]))
        # One prediction at a time: each wants the whole device, and the memory of one is known.
        with self._lock:
            digest, segmenter = self._current()
            mask = segmenter.predict(volume, self.app_config.axis_of(volume.spacing))
        target = self.outbox / f"{uuid.uuid4().hex}{suffix}"
        write_volume(target, mask.astype(dtype), volume.affine)
        return str(target), {"label_names": self.app_config.label_values(), "model": digest}

    def _current(self) -> tuple[str, Segmenter]:
        digest = self.weights.current()
        if digest is None:
            raise Conflict(
                f"The model {self.name!r} has not been trained yet. Label some slices, or POST /train/{self.name}."
            )
        if self._loaded is None or self._loaded[0] != digest:
            device, spec = pick_device(self.app_config.device), self.workplace.spec()
            segmenter = Segmenter(
                spec, self.weights.load(digest, plans=spec.plans), device=device, batch=self.app_config.sweep_batch
            )
            self._loaded = (digest, segmenter)
        return self._loaded


class BatchInference(BatchInferTask):
    """MONAI Label's batch inference, whose default of several GPUs divides by zero on a machine without one."""

    def __call__(self, request: Mapping[str, Any], datastore: Any, infer: Any) -> Any:
        several = bool(request.get("multi_gpu", True)) and torch.cuda.device_count() > 1
        return super().__call__({**request, "multi_gpu": several}, datastore, infer)


def _result_form(request: Mapping[str, Any]) -> tuple[str, np.dtype[Any]]:
    suffix, dtype = request.get("result_extension") or ".nrrd", request.get("result_dtype") or "uint8"
    if suffix not in RESULT_SUFFIXES:
        raise BadInput(f"result_extension must be one of {', '.join(RESULT_SUFFIXES)}, got {str(suffix)[:40]!r}.")
    if dtype not in RESULT_TYPES:
        raise BadInput(f"result_dtype must be one of {', '.join(RESULT_TYPES)}, got {str(dtype)[:40]!r}.")
    return suffix, np.dtype(dtype)
