"""Where the voxels of a series are: in space, and in which DICOM instance."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from datastore.volume_io import Affine, Header

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SeriesGeometry:
    """A series as a volume (i, j, k): i along a row's columns, j along the rows, k from instance to instance.

    Attributes:
        shape: voxels along i, j, k.
        affine: four rows of four, voxels (i, j, k) to RAS mm.
        sop_uids: of each k, the SOP instance that holds the slice.
        frame_numbers: of each k, the number of its frame in that instance, from 1; 0 where the instance holds one image only.
        sop_class_uid: of the instances.
        study_date, study_time, modality: as the instances say; "" where they do not.
        header: what the first instance says of patient, equipment and study, in DICOM's JSON form, without pixels.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    shape: tuple[int, int, int]
    affine: Rows
    sop_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    sop_class_uid: str
    patient_id: str
    modality: str = ""
    study_date: str = ""
    study_time: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matrix(self) -> Affine:
        """`affine` as an array (4, 4)."""
        return np.array(self.affine, np.float64)

    @property
    def volume_header(self) -> Header:
        """As of the volume's file."""
        return Header(self.shape, self.matrix)

    def slice_of(self, sop_uid: str, frame: int = 0) -> int:
        """The k of an instance, or of a frame (from 1) of a multi-frame instance.

        Raises:
            KeyError: no such instance or frame in this series.
        """
        for k, found in enumerate(zip(self.sop_uids, self.frame_numbers, strict=True)):
            if found == (sop_uid, frame):
                return k
        raise KeyError(f"{sop_uid}, frame {frame}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of `to_json`, from a file."""
        found = json.loads(path.read_text())
        found["affine"] = tuple(map(tuple, found["affine"]))
        for key in ("shape", "sop_uids", "frame_numbers"):
            found[key] = tuple(found[key])
        return cls(**found)
