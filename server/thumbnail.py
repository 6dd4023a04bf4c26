"""Draws one slice as a small picture: as radiologists look at it, with contours, heat and annotation on it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

ByteArray = npt.NDArray[np.uint8]

CLASS_COLOURS = (
    (86, 180, 233), (230, 159, 0), (0, 200, 140), (240, 110, 170),
    (240, 228, 66), (150, 130, 255), (255, 105, 70), (120, 220, 220),
)  # fmt: skip
"""Of class 1, 2, ..., told apart also by most people who see few colours; they begin anew after the last."""

_WINDOW_PERCENT = (0.5, 99.5)
_HEAT_FROM, _HEAT_TO = np.array([255.0, 70.0, 30.0]), np.array([255.0, 240.0, 120.0])
_HEAT_OPACITY, _FILL_OPACITY = 0.75, 0.4
_FULL_HEAT = 0.6
"""Of the highest, from here on the heat is at its brightest: two classes alike are far below many classes alike."""


@dataclass(frozen=True)
class Layers:
    """A slice and what is drawn on it, all (A, B), in the order of the volume's axes without the slice axis.

    Attributes:
        voxels: of the image. contour: predicted classes. heat: uncertainty, 255 is the highest. label: annotated classes.
    """

    voxels: npt.NDArray[Any]
    contour: ByteArray | None = None
    heat: ByteArray | None = None
    label: ByteArray | None = None


def draw(layers: Layers, affine: npt.NDArray[np.float64], axis: int, size: int) -> Image.Image:
    """The picture, `size` pixels along its longer side in mm.

    Radiological convention: the patient's right is on the left of axial and coronal pictures, and the front on the left of
    sagittal ones; the head, or in axial ones the front, is at the top. An oblique volume is shown as its nearest plane.

    Args:
        affine: of the volume, (4, 4) to RAS mm. axis: the slice axis.
    """
    turn = _Turn.of(affine, axis)
    voxels = turn(layers.voxels)
    lengths = np.array(voxels.shape) * turn.spacing
    height, width = (max(1, round(size * length / lengths.max())) for length in lengths)
    grey = _resized(_windowed(voxels), width, height, Image.Resampling.BICUBIC)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    if layers.heat is not None:
        heat = _resized(turn(layers.heat), width, height, Image.Resampling.BILINEAR)[..., None] / 255
        heat = (heat / _FULL_HEAT).clip(0, 1)
        picture += (_HEAT_FROM + (_HEAT_TO - _HEAT_FROM) * heat - picture) * (_HEAT_OPACITY * heat)
    if layers.label is not None:
        label = _resized(turn(layers.label), width, height, Image.Resampling.NEAREST)
        picture = np.where(label[..., None] > 0, picture + (_colours(label) - picture) * _FILL_OPACITY, picture)
    if layers.contour is not None:
        contour = _edges(_resized(turn(layers.contour), width, height, Image.Resampling.NEAREST))
        picture = np.where(contour[..., None] > 0, _colours(contour), picture)
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Turn:
    """How a slice is laid onto the screen.

    Attributes:
        transpose: the slice's first axis runs across. flip: (rows, columns) that run the other way.
        spacing: mm of a (row, column).
    """

    transpose: bool
    flip: tuple[bool, bool]
    spacing: npt.NDArray[np.float64]

    @classmethod
    def of(cls, affine: npt.NDArray[np.float64], axis: int) -> "_Turn":
        mm = np.linalg.norm(affine[:3, :3], axis=0)
        nearest = nib.orientations.io_orientation(affine)
        inside = [i for i in range(3) if i != axis]
        # Across runs the axis nearer to right-left, or in sagittal slices to front-back; both run against RAS.
        rows, columns = sorted(inside, key=lambda i: nearest[i, 0], reverse=True)
        flip = (bool(nearest[rows, 1] > 0), bool(nearest[columns, 1] > 0))
        return cls(rows != inside[0], flip, mm[[rows, columns]])

    def __call__(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = plane.T if self.transpose else plane
        return turned[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]


def _windowed(voxels: npt.NDArray[Any]) -> ByteArray:
    """Grey values between two percentiles of the slice."""
    values = np.nan_to_num(voxels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(values, _WINDOW_PERCENT)
    if high <= low:
        low, high = values.min(), max(values.max(), values.min() + 1)
    grey: ByteArray = ((values - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    return grey


def _resized(plane: npt.NDArray[Any], width: int, height: int, how: Image.Resampling) -> ByteArray:
    picture = Image.fromarray(np.ascontiguousarray(plane, np.uint8))
    return np.asarray(picture.resize((width, height), how))


def _edges(classes: ByteArray) -> ByteArray:
    """Of each class, the pixels that touch another one or the picture's border; 0 elsewhere."""
    padded = np.pad(classes, 1)
    inner = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge: ByteArray = np.where(np.any([other != inner for other in around], axis=0), inner, 0).astype(np.uint8)
    return edge


def _colours(classes: ByteArray) -> npt.NDArray[np.float64]:
    """(H, W) -> (H, W, 3); class 0 has none."""
    table: Sequence[tuple[int, int, int]] = [CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)] for k in range(256)]
    return np.array(table, np.float64)[classes]
