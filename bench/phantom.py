"""Phantom patients with ground truth, for the demo, the tests and the benchmarks.

A phantom is a body with a large organ, a winding vessel, a thin closed wall around a blood-filled cavity and, in a
third of the patients, a small lesion.  Unlabelled look-alikes (a spine, nodules, the cavity) share the intensities of
labelled tissue, so that a model has to learn shape and place as well as brightness.

All shapes live in field-of-view coordinates: each axis of the volume runs from -1 to 1, whatever its voxel count.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

LABELS: tuple[str, ...] = ("organ", "vessel", "wall", "lesion")

_ORGAN, _VESSEL, _WALL, _LESION = range(1, len(LABELS) + 1)
# Tissues that show in the image and have no label of their own; numbered after the labels to share one lookup table.
_AIR, _BODY, _FAT, _CAVITY, _SPINE, _NODULE = 0, *range(len(LABELS) + 1, len(LABELS) + 6)

_PATIENT_PATTERN = r"patient\d+"
_LESION_SHARE = 1 / 3
_MIN_SHAPE = (32, 32, 8)
SMALL = (48, 48, 14)
"""Voxels of a volume that shows everything and is a third of the usual, for whoever wants to be quick."""

# Labelled structures end here along z, which leaves at least one slice of body at each end from 8 slices up.
_Z_LIMIT = 0.86

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Phantom:
    """One volume and its ground truth.

    image: (X, Y, Z) int16, arbitrary scanner units.  label: (X, Y, Z) uint8, 0 = nothing, k = LABELS[k - 1].
    affine: (4, 4) float64, voxel index to RAS position in mm.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: _Floats


@dataclass(frozen=True)
class _Setting:
    """How a scanner takes the picture: shape in voxels, spacing in mm, tissue brightness and noise in 0..1 units."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    brightness: dict[int, float]
    noise: float
    bias: float


_SETTINGS = (
    _Setting(
        shape=(64, 64, 20),
        spacing=(1.5, 1.5, 6.0),
        brightness={
            _AIR: 0.02, _BODY: 0.40, _FAT: 0.75, _SPINE: 0.58, _NODULE: 0.60,
            _ORGAN: 0.56, _VESSEL: 0.82, _WALL: 0.22, _CAVITY: 0.80, _LESION: 0.90,
        },
        noise=0.035,
        bias=0.22,
    ),
    _Setting(
        shape=(72, 60, 24),
        spacing=(1.2, 1.2, 5.0),
        brightness={
            _AIR: 0.02, _BODY: 0.55, _FAT: 0.30, _SPINE: 0.40, _NODULE: 0.36,
            _ORGAN: 0.40, _VESSEL: 0.20, _WALL: 0.76, _CAVITY: 0.24, _LESION: 0.72,
        },
        noise=0.05,
        bias=0.30,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Blob:
    """A deformed, rotated ellipsoid; centre and half axes in field-of-view units, angles in radians.

    drift: in-plane shift of the centre per unit of z.  waves: (order, amplitude, phase) of the ripples of the outline.
    """

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    angle: float = 0.0
    drift: tuple[float, float] = (0.0, 0.0)
    waves: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class _Tube:
    """A tube that runs along z; lengths in field-of-view units, swings as (amplitude, frequency, phase) over z."""

    centre: tuple[float, float]
    radius: float
    ends: tuple[float, float]
    swing_x: tuple[float, float, float]
    swing_y: tuple[float, float, float]


@dataclass(frozen=True)
class _Lesion:
    """A lesion; offset from the organ's centre and radius in field-of-view units, height in slices."""

    offset: tuple[float, float, float]
    radius: float
    slices: int


@dataclass(frozen=True)
class _Anatomy:
    """All that stays the same from one scan of a patient to the next; tint: tissue to brightness factor."""

    body: _Blob
    spine: _Blob
    nodules: tuple[_Blob, ...]
    organ: _Blob
    vessel: _Tube
    chamber: _Blob
    wall_voxels: float
    lesion: _Lesion | None
    tint: dict[int, float]


def make_phantom(rng: np.random.Generator, *, setting: int, shape: tuple[int, int, int] = (64, 64, 20)) -> Phantom:
    """Make one volume of a new patient.

    setting: 0 or 1, the acquisition (contrast, noise, spacing in mm).  shape: (X, Y, Z) voxels, at least (32, 32, 8).
    """
    if setting not in range(len(_SETTINGS)):
        raise ValueError(f"setting must be 0..{len(_SETTINGS) - 1}, not {setting}")
    if any(size < least for size, least in zip(shape, _MIN_SHAPE, strict=True)):
        raise ValueError(f"shape must be at least {_MIN_SHAPE} voxels for the thin structures to fit, not {shape}")
    has_lesion = bool(rng.random() < _LESION_SHARE)
    return _scan(_draw_anatomy(rng, has_lesion=has_lesion), rng, setting=setting, shape=shape)


def write_phantoms(
    folder: Path,
    *,
    patients: int = 24,
    seed: int = 0,
    volumes_per_patient: int = 1,
    shape: tuple[int, int, int] | None = None,
    progress: bool = False,
) -> list[str]:
    """Write a phantom study: folder/images, folder/labels and folder/images/nextslice.json; return the image ids.

    The same arguments give the same bytes.  The files appear only once all are made.  Half the patients have each
    acquisition setting and a third have a lesion, in an order drawn from the seed.
    shape: (X, Y, Z) voxels of every volume; None: of the acquisition setting.  progress: show a bar over volumes.
    """
    folder = Path(folder)
    if patients < 1 or volumes_per_patient < 1:
        raise ValueError(f"need at least one patient and one volume, not {patients} and {volumes_per_patient}")
    _refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = []
    # Staged inside the folder, not beside it, so that the moves stay on one file system even for a mounted folder.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as staged:
        images, labels = Path(staged, "images"), Path(staged, "labels")
        images.mkdir()
        labels.mkdir()
        study = _study(patients, volumes_per_patient, seed, shape)
        for image_id, phantom in tqdm(study, total=patients * volumes_per_patient, unit="vol", disable=not progress):
            _write_nifti(images / f"{image_id}.nii.gz", phantom.image, phantom.affine)
            _write_nifti(labels / f"{image_id}.nii.gz", phantom.label, phantom.affine)
            ids.append(image_id)
        config = {"labels": list(LABELS), "patient_pattern": _PATIENT_PATTERN}
        (images / "nextslice.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        # Labels first: whoever waits for the images to appear finds the ground truth in place.
        labels.rename(folder / "labels")
        images.rename(folder / "images")
    return ids


def _refuse_used(folder: Path) -> None:
    """Raise FileExistsError when the folder holds anything, or is no folder."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{folder} {what}: phantoms are not written over it; delete it or name a new folder")


def _study(patients: int, volumes: int, seed: int, shape: tuple[int, int, int] | None) -> Iterator[tuple[str, Phantom]]:
    """Yield the image id and the phantom of each volume of a study, patient after patient."""
    order_seed, *patient_seeds = np.random.SeedSequence(seed).spawn(patients + 1)
    order = np.random.default_rng(order_seed)
    # Shuffled shares rather than coin tosses: a small study still gets both settings and its third of lesions.
    settings = order.permutation(np.arange(patients) % len(_SETTINGS))
    lesions = order.permutation(np.arange(patients) < round(patients * _LESION_SHARE))
    for number, patient_seed in enumerate(patient_seeds, start=1):
        rng = np.random.default_rng(patient_seed)
        setting = int(settings[number - 1])
        anatomy = _draw_anatomy(rng, has_lesion=bool(lesions[number - 1]))
        for scan in range(1, volumes + 1):
            image_id = f"patient{number:03d}" + (f"_scan{scan}" if volumes > 1 else "")
            size = shape or _SETTINGS[setting].shape
            yield image_id, _scan(_reposition(anatomy, rng), rng, setting=setting, shape=size)


def _write_nifti(path: Path, data: NDArray[Any], affine: _Floats) -> None:
    """Write (X, Y, Z) data as compressed NIfTI with both of its affines set, in mm, and no time stamp."""
    make: Any = nib.Nifti1Image  # its methods carry no types
    image = make(data, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units(xyz="mm")
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def _draw_anatomy(rng: np.random.Generator, *, has_lesion: bool) -> _Anatomy:
    """Draw a patient: where each structure lies, its size and shape, and how bright its tissue is."""
    organ = _draw_blob(rng, centre=(0.36, 0.04, 0.0), axes=(0.31, 0.40, 0.50), jitter=0.05, ripple=0.09)
    return _Anatomy(
        body=_draw_blob(rng, centre=(0.0, 0.0, 0.0), axes=(0.90, 0.78, 1.9), jitter=0.02, ripple=0.02, turn=0.08),
        spine=_draw_blob(rng, centre=(0.0, -0.55, 0.0), axes=(0.13, 0.11, 4.0), jitter=0.03, ripple=0.05),
        nodules=tuple(_draw_nodule(rng) for _ in range(rng.integers(2, 5))),
        organ=organ,
        vessel=_draw_tube(rng),
        chamber=_draw_blob(rng, centre=(-0.40, 0.10, 0.0), axes=(0.27, 0.30, 0.46), jitter=0.06, ripple=0.05),
        wall_voxels=rng.uniform(1.5, 2.0),
        lesion=_draw_lesion(rng, organ) if has_lesion else None,
        tint={tissue: rng.uniform(0.90, 1.10) for tissue in sorted(_SETTINGS[0].brightness)},
    )


def _draw_blob(
    rng: np.random.Generator,
    *,
    centre: tuple[float, float, float],
    axes: tuple[float, float, float],
    jitter: float,
    ripple: float,
    turn: float = 0.5,
) -> _Blob:
    """Vary an ellipsoid: jitter moves the centre (field-of-view units), ripple bends the outline (share of radius).

    turn: the largest rotation about z, in radians.
    """
    moved = np.asarray(centre) + rng.uniform(-jitter, jitter, size=3)
    scaled = np.asarray(axes) * rng.uniform(0.85, 1.10, size=3)
    return _Blob(
        centre=_triple(moved),
        axes=_triple(scaled),
        angle=rng.uniform(-turn, turn),
        drift=(rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter)),
        waves=tuple((order, rng.uniform(0.0, ripple), rng.uniform(0.0, 2 * np.pi)) for order in (2, 3, 5)),
    )


def _draw_nodule(rng: np.random.Generator) -> _Blob:
    """Draw a small unlabelled blob somewhere in the body."""
    turn, distance = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.1, 0.6)
    centre = (distance * np.cos(turn), 0.8 * distance * np.sin(turn), rng.uniform(-0.9, 0.9))
    return _draw_blob(rng, centre=centre, axes=(0.11, 0.11, 0.20), jitter=0.0, ripple=0.08)


def _draw_tube(rng: np.random.Generator) -> _Tube:
    """Draw the course of the vessel, between the organ and the chamber."""
    return _Tube(
        centre=(rng.uniform(-0.08, 0.08), rng.uniform(-0.25, -0.12)),
        radius=rng.uniform(0.075, 0.105),
        ends=(rng.uniform(-_Z_LIMIT, -0.6), rng.uniform(0.6, _Z_LIMIT)),
        swing_x=(rng.uniform(0.10, 0.20), rng.uniform(2.5, 4.5), rng.uniform(0.0, 2 * np.pi)),
        swing_y=(rng.uniform(0.08, 0.16), rng.uniform(2.0, 4.0), rng.uniform(0.0, 2 * np.pi)),
    )


def _draw_lesion(rng: np.random.Generator, organ: _Blob) -> _Lesion:
    """Draw a lesion well inside the organ."""
    turn, distance = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.1, 0.5)
    reach = np.array([distance * np.cos(turn), distance * np.sin(turn), rng.uniform(-0.15, 0.15)])
    return _Lesion(offset=_triple(reach * organ.axes), radius=rng.uniform(0.10, 0.15), slices=int(rng.integers(2, 5)))


def _reposition(anatomy: _Anatomy, rng: np.random.Generator) -> _Anatomy:
    """Move the soft structures a little, as breathing and lying down anew do between two scans."""
    return replace(
        anatomy,
        organ=_shift(anatomy.organ, rng.uniform(-0.02, 0.02, size=3)),
        chamber=_shift(anatomy.chamber, rng.uniform(-0.02, 0.02, size=3)),
    )


def _shift(blob: _Blob, by: _Floats) -> _Blob:
    """Move a blob by a (3,) step in field-of-view units."""
    return replace(blob, centre=_triple(np.asarray(blob.centre) + by))


def _triple(values: _Floats) -> tuple[float, float, float]:
    """Turn a (3,) array into three plain numbers."""
    x, y, z = (float(value) for value in values)
    return x, y, z


def _scan(anatomy: _Anatomy, rng: np.random.Generator, *, setting: int, shape: tuple[int, int, int]) -> Phantom:
    """Take a volume of a patient: tissue map, then the image that the setting makes of it."""
    scanner = _SETTINGS[setting]
    tissue = _tissue_map(anatomy, shape)
    label = np.where(tissue <= len(LABELS), tissue, 0).astype(np.uint8)
    return Phantom(image=_acquire(tissue, anatomy.tint, scanner, rng), label=label, affine=_affine(scanner, shape))


def _affine(scanner: _Setting, shape: tuple[int, int, int]) -> _Floats:
    """Affine (4, 4) in mm with RAS axes and the middle of the volume at the origin."""
    affine = np.diag([*scanner.spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * scanner.spacing
    return affine


def _grid(shape: tuple[int, int, int]) -> tuple[_Floats, _Floats, _Floats]:
    """Voxel centres in field-of-view coordinates, as three arrays that broadcast to shape."""
    x, y, z = ((2 * np.arange(size) + 1) / size - 1 for size in shape)
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _tissue_map(anatomy: _Anatomy, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Paint the structures one over the other into an (X, Y, Z) map of tissue numbers."""
    tissue = np.zeros(shape, np.uint8)
    z = _grid(shape)[2]
    within = np.broadcast_to(np.abs(z) < _Z_LIMIT, shape)
    body = _depth(anatomy.body, shape)
    tissue[body < 1.0] = _FAT
    inside = body < 0.9
    tissue[inside] = _BODY
    tissue[(_depth(anatomy.spine, shape) < 1.0) & inside] = _SPINE
    for nodule in anatomy.nodules:
        tissue[(_depth(nodule, shape) < 1.0) & inside] = _NODULE
    tissue[(_depth(anatomy.organ, shape) < 1.0) & inside & within] = _ORGAN
    tissue[_tube_mask(anatomy.vessel, shape)] = _VESSEL
    outer = (_depth(anatomy.chamber, shape) < 1.0) & within
    tissue[outer] = _WALL
    tissue[_cavity_mask(anatomy.chamber, outer, anatomy.wall_voxels)] = _CAVITY
    if anatomy.lesion is not None:
        tissue[_lesion_mask(anatomy.lesion, anatomy.organ, shape)] = _LESION
    return tissue


def _depth(blob: _Blob, shape: tuple[int, int, int]) -> _Floats:
    """Distance of each voxel from the blob's centre, (X, Y, Z), in units of its radius: inside is below 1."""
    x, y, z = _grid(shape)
    dz = z - blob.centre[2]
    dx, dy = x - blob.centre[0] - blob.drift[0] * dz, y - blob.centre[1] - blob.drift[1] * dz
    cos, sin = np.cos(blob.angle), np.sin(blob.angle)
    u, v, w = (cos * dx + sin * dy) / blob.axes[0], (cos * dy - sin * dx) / blob.axes[1], dz / blob.axes[2]
    turn = np.arctan2(v, u)
    # The phase moves with w, so the outline changes from slice to slice instead of only scaling.
    ripple = sum(amplitude * np.cos(order * turn + phase + 2.0 * w) for order, amplitude, phase in blob.waves)
    depth: _Floats = np.sqrt((u**2 + v**2) / (1.0 + ripple) ** 2 + w**2)
    return depth


def _tube_mask(tube: _Tube, shape: tuple[int, int, int]) -> _Mask:
    """Voxels of a tube, (X, Y, Z)."""
    x, y, z = _grid(shape)
    (size_x, rate_x, phase_x), (size_y, rate_y, phase_y) = tube.swing_x, tube.swing_y
    dx = x - tube.centre[0] - size_x * np.sin(rate_x * z + phase_x)
    dy = y - tube.centre[1] - size_y * np.sin(rate_y * z + phase_y)
    # It narrows upwards, as a vessel does that gives off branches.
    radius = tube.radius * (1.0 - 0.25 * z)
    mask: _Mask = (dx**2 + dy**2 < radius**2) & (z > tube.ends[0]) & (z < tube.ends[1])
    return mask


def _cavity_mask(chamber: _Blob, outer: _Mask, thickness: float) -> _Mask:
    """The room inside the wall, (X, Y, Z); outer: the wall filled up, thickness: of the wall, in in-plane voxels."""
    depth = _depth(chamber, (outer.shape[0], outer.shape[1], outer.shape[2]))
    slope = np.hypot(*np.gradient(depth, axis=(0, 1)))
    room = (1.0 - depth) > thickness * slope
    # A slice is thicker than the wall: only the slice above and below being filled keeps the shell closed at its ends.
    column = np.zeros((3, 3, 3), bool)
    column[1, 1, :] = True
    mask: _Mask = room & ndimage.binary_erosion(outer, column)
    return mask


def _lesion_mask(lesion: _Lesion, organ: _Blob, shape: tuple[int, int, int]) -> _Mask:
    """Voxels of a lesion, (X, Y, Z), in exactly lesion.slices slices."""
    x, y, _ = _grid(shape)
    cx, cy, cz = (middle + step for middle, step in zip(organ.centre, lesion.offset, strict=True))
    middle_slice = (cz + 1.0) * shape[2] / 2 - 0.5
    first = int(np.clip(round(middle_slice - (lesion.slices - 1) / 2), 1, shape[2] - 1 - lesion.slices))
    w = (np.arange(shape[2]) - first - (lesion.slices - 1) / 2) / (lesion.slices / 2)
    mask: _Mask = ((x - cx) ** 2 + (y - cy) ** 2) / lesion.radius**2 + w[None, None, :] ** 2 < 1.0
    return mask


def _acquire(
    tissue: NDArray[np.uint8], tint: dict[int, float], scanner: _Setting, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Image a tissue map, (X, Y, Z) to (X, Y, Z) int16: texture, partial volume, bias field and noise."""
    brightness = np.array([scanner.brightness[kind] * tint[kind] for kind in sorted(scanner.brightness)])
    clean = brightness[tissue] * (1.0 + 0.08 * _texture(tissue.shape, rng))
    # Blurring the sharp map mixes neighbouring tissue at the borders; little of it crosses the thick slices.
    signal = ndimage.gaussian_filter(clean, sigma=(0.7, 0.7, 0.4)) * _bias_field(tissue.shape, scanner.bias, rng)
    real, imaginary = rng.normal(0.0, scanner.noise, size=(2, *tissue.shape))
    magnitude: _Floats = np.hypot(signal + real, imaginary) * rng.uniform(700.0, 1100.0)
    return np.rint(magnitude).astype(np.int16)


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> _Floats:
    """Smooth random field of unit deviation, (X, Y, Z), of blotches some voxels wide."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma=(2.0, 2.0, 0.7))
    unit: _Floats = field / field.std()
    return unit


def _bias_field(shape: tuple[int, ...], strength: float, rng: np.random.Generator) -> _Floats:
    """Positive factor around 1, (X, Y, Z), that varies slowly; strength: of its logarithm, per random term."""
    x, y, z = _grid((shape[0], shape[1], shape[2]))
    a, b, c, d, e, f = rng.uniform(-strength, strength, size=6)
    field: _Floats = np.exp(a * x + b * y + 0.5 * c * z + d * x * y + e * (x**2 - 1 / 3) + f * (y**2 - 1 / 3))
    return field
