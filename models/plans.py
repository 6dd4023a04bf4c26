"""nnU-Net's plans of a campaign: made once, kept as JSON in the model's folder, read by training, inference and sweep."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from loop.durable import atomic
from loop.errors import BadInput

FILE = "plans.json"


@dataclass(frozen=True)
class Plans:
    """What nnU-Net's planner decided, of which one configuration is used.

    The planner sees an image's slice axis first and its other axes from the last to the first, as nnU-Net reads (k, j, i).

    Attributes:
        configuration: "2d" or "3d_fullres".
        axis: of a 3-D configuration, the axis of the images that stands first in the plans; None for 2-D, where it is each
            image's own slice axis.
        made_from: what was planned on: images, voxels, modality, planner.
        content: nnU-Net's own plans.
    """

    configuration: str
    axis: int | None
    made_from: Mapping[str, Any]
    content: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the plans."""
        return hashlib.sha256(json.dumps(self._json(), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def used(self) -> Mapping[str, Any]:
        """nnU-Net's configuration that is used, with its axes in the planner's order."""
        found: Mapping[str, Any] = self.content["configurations"][self.configuration]
        return found

    @property
    def spatial_dims(self) -> int:
        return 2 if self.configuration == "2d" else 3

    @property
    def order(self) -> tuple[int, ...]:
        """Of each axis of the model (those of the image, ascending), its place in the plans."""
        if self.axis is None:
            return (1, 0)
        planned = [self.axis, *(axis for axis in (2, 1, 0) if axis != self.axis)]
        return tuple(planned.index(axis) for axis in range(3))

    def summary(self) -> dict[str, Any]:
        """What a person wants to know of them, as the planner wrote it."""
        architecture = self.used["architecture"]["arch_kwargs"]
        return {
            "digest": self.digest,
            "configuration": self.configuration,
            "spacing": self.used["spacing"],
            "patch_size": self.used["patch_size"],
            "batch_size": self.used["batch_size"],
            "median_image_size": self.used["median_image_size_in_voxels"],
            "normalization": self.used["normalization_schemes"][0],
            "only_non_zero_voxels_normalized": self.used["use_mask_for_norm"][0],
            "network": self.used["architecture"]["network_class_name"].rsplit(".", 1)[-1],
            "features_per_stage": architecture["features_per_stage"],
            "strides": architecture["strides"],
            "kernel_sizes": architecture["kernel_sizes"],
            "made_from": dict(self.made_from),
        }

    def _json(self) -> dict[str, Any]:
        return {
            "configuration": self.configuration,
            "axis": self.axis,
            "made_from": dict(self.made_from),
            "plans": dict(self.content),
        }

    @classmethod
    def read(cls, file: Path) -> Self:
        """The plans of a file.

        Raises:
            FileNotFoundError: there are none. BadInput: the file is damaged.
        """
        try:
            found = json.loads(file.read_text())
            plans = cls(found["configuration"], found["axis"], found["made_from"], found["plans"])
            plans.summary()
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(
                f"{file} must hold the plans of a campaign, but is damaged ({type(error).__name__}: {error}). "
                "Put a copy of it back, or plan again: nextslice plan --again."
            ) from None
        return plans

    def keep(self, file: Path, *, replace: bool = False) -> Self:
        """Write them whole or not at all, and return what the file holds: plans that were there before stay.

        Args:
            replace: plans that were there before are replaced, and kept beside under their digest.
        """
        if replace and file.is_file():
            os.replace(file, file.with_name(f"plans-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.json"))
        try:
            with atomic(file, new=True) as temporary:
                temporary.write_text(json.dumps(self._json(), indent=1))
        except FileExistsError:  # another job was first
            return self.read(file)
        return self
