"""The instances of a series made into one volume, or refused with the reason."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from datastore.volume_io import Affine, Volume
from dicom.geometry import SeriesGeometry
from dicom.planes import NoDecoder, Plane, Vector, memory_for, planes_of, read_instance
from loop.errors import BadInput

_VOXEL_BYTES = 8
_SAME_DIRECTION = 1e-3
"""Difference of unit vectors' entries; scanners write them with six digits."""
_SAME_SPACING = 1e-3
"""Relative."""
_GAP = 0.1
"""Of the distance between neighbours: rounded positions vary by less, and a missing slice by ten times as much."""
_TILT = 1e-2
"""Sideways shift from slice to slice, relative to their distance: above it the volume would be no box."""
_KEPT_GROUPS = (0x0008, 0x0010, 0x0018, 0x0020)
_LONGEST_KEPT = 1024
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """A series as a volume (I, J, K), and where each slice came from."""

    volume: Volume
    geometry: SeriesGeometry


def read_series(files: Iterable[Path]) -> Series:
    """The volume that the instances of one series make together.

    Args:
        files: each with one instance, in any order.

    Raises:
        BadInput: no instance; one that cannot be read, lacks geometry or has other pixels than it claims; two with one UID or
            one place; several orientations, sizes, spacings or frames of reference; gaps; a tilted gantry.
        NoDecoder: pixels in a transfer syntax that cannot be read here.
    """
    instances = [read_instance(path) for path in files]
    planes = [plane for instance in instances for plane in planes_of(instance)]
    if not planes:
        raise BadInput("the archive gave no instance of it.")
    _check_instances(instances)
    _check_alike(planes)
    planes = _sorted(planes)
    affine = _affine(planes)
    rows, columns = planes[0].size
    shape = (columns, rows, len(planes))
    if not memory_for(rows * columns * len(planes), _VOXEL_BYTES):
        raise BadInput(f"its {shape} voxels do not fit into half of this machine's memory.")
    return Series(Volume(_voxels(planes, shape), affine), _geometry(planes, shape, affine))


def _check_instances(instances: Sequence[Dataset]) -> None:
    """Raise BadInput unless they are instances of one series, each once."""
    seen: set[str] = set()
    for instance in instances:
        uid = str(instance.get("SOPInstanceUID", ""))
        if not uid:
            raise BadInput("an instance has no SOPInstanceUID.")
        if uid in seen:
            raise BadInput(f"two instances have the same SOPInstanceUID {uid}.")
        seen.add(uid)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        _one(keyword, [str(instance.get(keyword, "")) for instance in instances])
    _one("FrameOfReferenceUID", [str(instance.get("FrameOfReferenceUID", "")) for instance in instances])


def _one(what: str, values: Sequence[str]) -> None:
    different = sorted(set(values))
    if len(different) > 1:
        raise BadInput(f"its instances must have one {what}, got {len(different)}: {', '.join(different[:3])[:200]}.")
    if not different[0]:
        raise BadInput(f"its instances have no {what}.")


def _check_alike(planes: Sequence[Plane]) -> None:
    """Raise BadInput unless the images have one orientation, size and spacing."""
    sizes = sorted({plane.size for plane in planes})
    if len(sizes) > 1:
        raise BadInput(
            f"its images must have one size (rows x columns), got {', '.join(f'{r} x {c}' for r, c in sizes[:5])}."
        )
    for count, different in (
        (
            _kinds(planes, lambda a, b: np.allclose(_directions(a), _directions(b), atol=_SAME_DIRECTION)),
            "orientations",
        ),
        (_kinds(planes, lambda a, b: np.allclose(a.spacing, b.spacing, rtol=_SAME_SPACING)), "pixel spacings"),
    ):
        if count > 1:
            raise BadInput(f"its images must have one of each, got {count} different {different}.")


def _directions(plane: Plane) -> Vector:
    return np.concatenate([plane.along_row, plane.along_column])


def _kinds(planes: Sequence[Plane], same: Callable[[Plane, Plane], bool]) -> int:
    kinds: list[Plane] = []
    for plane in planes:
        if not any(same(plane, known) for known in kinds):
            kinds.append(plane)
    return len(kinds)


def _sorted(planes: Sequence[Plane]) -> list[Plane]:
    """By position along the normal, so that (i, j, k) is right-handed in LPS."""
    normal = np.cross(planes[0].along_row, planes[0].along_column)
    return sorted(planes, key=lambda plane: float(plane.position @ normal))


def _affine(planes: Sequence[Plane]) -> Affine:
    """(4, 4) to RAS mm; raises BadInput where the positions are not those of a box."""
    first = planes[0]
    normal = np.cross(first.along_row, first.along_column)
    at = np.array([plane.position for plane in planes])
    step = first.thickness * normal
    if len(planes) > 1:
        heights = at @ normal
        steps = np.diff(heights)
        usual = float(np.median(steps))
        for (one, other), height in zip(pairwise(planes), steps, strict=True):
            if height <= 1e-3 * max(usual, 1e-3) or height < 1e-4:
                raise BadInput(
                    f"two images are at the same position {one.position.round(3).tolist()} ({_told(one)} and {_told(other)}): "
                    "several volumes in one series, such as time points, are not supported."
                )
        worst = int(np.abs(steps - usual).argmax())
        if abs(steps[worst] - usual) > _GAP * usual:
            raise BadInput(
                f"there is a gap: its images are {usual:.4g} mm apart, but {steps[worst]:.4g} mm after number "
                f"{worst + 1} of {len(at)}."
            )
        step = (at[-1] - at[0]) / (len(at) - 1)
        straight = at[0] + np.arange(len(at))[:, None] * step
        if np.abs(at - straight).max() > _GAP * usual:
            raise BadInput("the positions of its images are not on a straight line.")
        sideways = step - (step @ normal) * normal
        if np.linalg.norm(sideways) > _TILT * usual:
            raise BadInput(
                f"its images are shifted sideways by {np.linalg.norm(sideways):.3g} mm from one to the next (a tilted gantry); "
                "viewers show no such volume."
            )
    lps = np.eye(4)
    lps[:3, 0] = first.along_row * first.spacing[1]
    lps[:3, 1] = first.along_column * first.spacing[0]
    lps[:3, 2], lps[:3, 3] = step, at[0]
    affine: Affine = _LPS_TO_RAS @ lps
    return affine


def _told(plane: Plane) -> str:
    return f"{plane.sop_uid}, frame {plane.frame}" if plane.frame else plane.sop_uid


def _voxels(planes: Sequence[Plane], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """(I, J, K): whole numbers where the values are, in 16 bits where they fit; else float32."""
    whole = all(float(plane.slope).is_integer() and float(plane.intercept).is_integer() for plane in planes)
    array = np.zeros(shape, np.int64 if whole else np.float32)
    for k, plane in enumerate(planes):
        stored = _stored(plane)
        array[..., k] = (
            stored.astype(array.dtype) * array.dtype.type(plane.slope) + array.dtype.type(plane.intercept)
        ).T
    if not whole:
        return array
    low, high = int(array.min()), int(array.max())
    kind = next(
        (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max), None
    )
    return array.astype(kind or np.float32)


def _stored(plane: Plane) -> npt.NDArray[Any]:
    """(rows, columns) as stored.

    Raises:
        BadInput: they are of another size. NoDecoder: they cannot be decoded; an archive's decoder may know this kind.
    """
    try:
        found: npt.NDArray[Any] = pixel_array(plane.instance, index=plane.index)
    # Decoders raise whatever they meet.
    except Exception as error:  # noqa: BLE001
        said = str(error).strip().splitlines()
        syntax = plane.instance.file_meta.TransferSyntaxUID
        reason = f"the pixels of {_told(plane)} ({syntax.name}) could not be decoded: {(said or [''])[0][:200]}"
        raise NoDecoder(reason) from None
    if found.shape != plane.size:
        raise BadInput(f"the pixels of {_told(plane)} must be {plane.size}, got {found.shape}.")
    return found


def _geometry(planes: Sequence[Plane], shape: tuple[int, int, int], affine: Affine) -> SeriesGeometry:
    first = planes[0].instance

    def text(keyword: str) -> str:
        return str(first.get(keyword) or "")

    return SeriesGeometry(
        study_uid=text("StudyInstanceUID"),
        series_uid=text("SeriesInstanceUID"),
        frame_of_reference_uid=text("FrameOfReferenceUID"),
        shape=shape,
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        sop_uids=tuple(plane.sop_uid for plane in planes),
        frame_numbers=tuple(plane.frame for plane in planes),
        sop_class_uid=text("SOPClassUID"),
        patient_id=text("PatientID"),
        modality=text("Modality"),
        study_date=text("StudyDate"),
        study_time=text("StudyTime"),
        header=_header(first),
    )


def _header(instance: Dataset) -> dict[str, Any]:
    """The short elements that say who, when and with what; private ones, sequences and pixels stay behind."""
    kept = Dataset()
    for element in instance:
        if (
            element.tag.group in _KEPT_GROUPS
            and element.VR not in ("SQ", "OB", "OW", "UN")
            and len(str(element.value)) <= _LONGEST_KEPT
        ):
            kept.add(element)
    try:
        found: dict[str, Any] = kept.to_json_dict(suppress_invalid_tags=True)
    except Exception:  # noqa: BLE001 - it is a convenience for who writes a label to the archive, and no reason to refuse
        return {}
    return found
