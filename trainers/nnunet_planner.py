"""nnU-Net's own planner run on a campaign's images: fingerprint, then plans. Images are read, nothing of them is copied."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datastore.volume_io import is_here, read_volume
from loop.errors import BadInput
from models.plans import Plans
from models.preprocess import finite_voxels

_DATASET = "Dataset001_campaign"
_SAMPLED_VOXELS = 10**6
"""Of the whole campaign, for the statistics of intensities; nnU-Net takes a hundred times as many, and the memory for it."""

_AIR = -500
"""HU. The darkest voxel of a CT is air at about -1000; no other modality goes so far below zero."""


@dataclass(frozen=True)
class Planned:
    """An image to plan on.

    Attributes:
        lead: the axis that the planner sees first.
        mask: the composite mask, where something is annotated.
        fetch: brings the image's file there, if it comes from elsewhere and is not there.
    """

    image: Path
    lead: int
    mask: Path | None = None
    fetch: Callable[[], object] = is_here


def make_plans(
    cases: Sequence[Planned],
    labels: Sequence[str],
    *,
    configuration: str,
    modality: str,
    folder: Path,
    report: Callable[[float], None] = lambda fraction: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Plans:
    """Run nnU-Net's planner; it needs no labels.

    Statistics of intensities, which only the normalisation of CT uses, are over annotated foreground where there is any, as
    nnU-Net's, and else over all voxels that are not 0.

    Args:
        configuration: "2d" or "3d_fullres".
        modality: "mr", "ct", or "auto": CT where the darkest voxel of at least half of the images is -500 or less.
        folder: for nnU-Net's own files, which are gone afterwards.
        report: told the share of the images that have been read.
        warn: told of an image that is left out.

    Raises:
        BadInput: no image can be read, or the images are no volumes and a 3-D configuration is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".planning-") as place, _nnunet_folders(Path(place)):
        found = _Fingerprint(cases, report, warn)
        name = modality if modality != "auto" else "ct" if float(np.median(found.darkest)) <= _AIR else "mr"
        content = _run_planner(Path(place), found, labels, name.upper())
    if configuration not in content["configurations"]:
        raise BadInput(
            f"nnU-Net planned no {configuration} for these images, only {', '.join(content['configurations'])}: "
            "they have one slice. Set --conf nnunet 2d."
        )
    made_from = {
        "images": len(found.shapes),
        "voxels": "annotated foreground" if found.annotated else "not zero",
        "modality": name + (" (found)" if modality == "auto" else ""),
        "labels": list(labels),
        "planner": f"nnunetv2 {version('nnunetv2')} {content['experiment_planner_used']}",
    }
    axis = None if configuration == "2d" else cases[0].lead
    return Plans(configuration, axis, made_from, content)


class _Fingerprint:
    """What nnU-Net's planner wants to know of the images."""

    def __init__(self, cases: Sequence[Planned], report: Callable[[float], None], warn: Callable[[str], None]) -> None:
        self.annotated = any(case.mask for case in cases)
        self._read(cases, report, warn)
        if self.annotated and not any(map(len, self.intensities)):
            self.annotated = False  # what is annotated is background only
            self._read(cases, report, lambda text: None)
        if not self.shapes:
            raise BadInput("There is no image that can be read to plan on. Add images to the studies folder.")

    def _read(self, cases: Sequence[Planned], report: Callable[[float], None], warn: Callable[[str], None]) -> None:
        from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

        self.shapes, self.spacings, self.kept = list[list[int]](), list[list[float]](), list[float]()
        self.intensities, self.darkest = list[npt.NDArray[Any]](), list[float]()
        each = max(1, _SAMPLED_VOXELS // max(1, len(cases)))
        for number, case in enumerate(cases, 1):
            reader = _Reader(case, self.annotated)
            try:
                shape, spacing, intensities, _, kept = DatasetFingerprintExtractor.analyze_case(
                    [str(case.image)], str(case.mask), lambda reader=reader: reader, each
                )
            except BadInput as error:
                warn(f"{case.image.name} was left out of the plans: {error}")
            else:
                self.shapes.append([int(size) for size in shape])
                self.spacings.append(list(spacing))
                self.kept.append(float(kept))
                self.intensities.append(np.asarray(intensities[0], np.float64))
                self.darkest.append(reader.darkest)
            report(number / len(cases))

    def to_json(self) -> dict[str, Any]:
        """dataset_fingerprint.json."""
        voxels = np.concatenate(self.intensities)
        low, median, high = (float(value) for value in np.percentile(voxels, (0.5, 50, 99.5)))
        statistics = {
            "mean": float(voxels.mean()), "median": median, "std": float(voxels.std()), "min": float(voxels.min()),
            "max": float(voxels.max()), "percentile_99_5": high, "percentile_00_5": low,
        }  # fmt: skip
        return {
            "spacings": self.spacings,
            "shapes_after_crop": self.shapes,
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "median_relative_size_after_cropping": float(np.median(self.kept)),
        }


class _Reader:
    """nnU-Net's reader of one case, by our own reading of files: axes in the planner's order, one channel."""

    def __init__(self, case: Planned, annotated: bool) -> None:
        self._case, self._annotated = case, annotated
        self._order = [case.lead, *(axis for axis in (2, 1, 0) if axis != case.lead)]
        self._voxels: npt.NDArray[Any] = np.zeros(0)
        self.darkest = 0.0

    def read_images(self, files: Sequence[str]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        self._case.fetch()
        volume = read_volume(self._case.image)
        self._voxels = finite_voxels(volume.array).numpy().transpose(self._order)[None]
        if not self._voxels.any():
            raise BadInput("The image has no voxel other than 0.")
        self.darkest = float(self._voxels.min())
        return self._voxels, {"spacing": [volume.spacing[axis] for axis in self._order]}

    def read_seg(self, file: str) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        if not self._annotated:
            return (self._voxels != 0).astype(np.int8), {}
        blank = np.zeros(self._voxels.shape, np.int8)
        if self._case.mask is None:
            return blank, {}
        mask = read_volume(self._case.mask).array.transpose(self._order)[None]
        # A label of another grid is said of in training; here it only adds no voxels.
        return ((mask > 0).astype(np.int8) if mask.shape == blank.shape else blank), {}


def _run_planner(place: Path, found: _Fingerprint, labels: Sequence[str], channel: str) -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    raw, preprocessed = place / "raw" / _DATASET, place / "preprocessed" / _DATASET
    for folder in (raw, preprocessed):
        folder.mkdir(parents=True)
    dataset = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, **{f"class_{value}": value for value in range(1, len(labels) + 1)}},
        "numTraining": len(found.shapes),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIO",
        # The planner asks only for one image's name.
        "dataset": {"campaign": {"images": ["campaign.nii.gz"], "label": "campaign.nii.gz"}},
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(found.to_json()))
    with contextlib.redirect_stdout(io.StringIO()):
        # The slice axis stands first already.
        ExperimentPlanner(_DATASET, suppress_transpose=True).plan_experiment()
    plans: dict[str, Any] = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    return plans


@contextlib.contextmanager
def _nnunet_folders(place: Path) -> Iterator[None]:
    """nnU-Net finds its folders by variables of the environment, which is as before when the block ends."""
    before = dict(os.environ)
    os.environ.update({f"nnUNet_{kind}": str(place / kind) for kind in ("raw", "preprocessed", "results")})
    try:
        yield
    finally:
        # Not only these: importing nnU-Net sets some more.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
