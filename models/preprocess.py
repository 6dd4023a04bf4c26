"""The one deterministic preprocessing: the same for training, validation, inference and sweep, and its way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from loop.errors import BadInput
from models.spec import ModelSpec

IGNORED = 255
"""Target value of voxels that nobody annotated, and of padding: losses and metrics do not see them."""

PREPROCESSING = 1
"""Counts up when `prepare` makes something else of the same image: what was kept of it is stale then."""

_CLIP_PERCENT = (0.5, 99.5)
_MOST_COUNTED = 1 << 16
"""Different whole numbers that are counted to put voxels in order."""


@dataclass(frozen=True)
class Prepared:
    """Network input of one image and what leads back to its voxels.

    Attributes:
        data: (n, 1, h, w) slices of a 2-D model, (1, 1, x, y, z) volume of a 3-D model; float32, padded to the divisor.
        native: spatial size of an item before resampling: (H, W) or (X, Y, Z).
        resampled: spatial size before padding.
        axis: slice axis of the volume.
    """

    data: Tensor
    native: tuple[int, ...]
    resampled: tuple[int, ...]
    axis: int


def prepare(spec: ModelSpec, array: npt.NDArray[Any], spacing: tuple[float, ...], axis: int) -> Prepared:
    """Normalise, resample and pad a volume (I, J, K).

    Args:
        spacing: mm along i, j, k.
        axis: the slice axis.

    Raises:
        BadInput: a voxel is not finite.
    """
    items = as_items(spec, (spec.normalise or normalised)(array), axis)
    native = tuple(items.shape[2:])
    size = _resampled_size(spec, native, spacing, axis)
    if size != native:
        items = functional.interpolate(items, size=size, mode=_linear(spec), align_corners=False)
    return Prepared(_padded(spec, items), native, size, axis)


def normalised(array: npt.NDArray[Any]) -> Tensor:
    """Voxels clipped to the 0.5 and 99.5 percentile, then mean 0 and standard deviation 1 over the volume."""
    voxels = finite_voxels(array)
    low, high = _percentiles(array)
    if high > low:
        voxels.clamp_(low, high)
    voxels.sub_(voxels.mean())
    # Of mean 0 already, which the norm needs and `std` would work out again.
    spread = torch.linalg.vector_norm(voxels) / math.sqrt(voxels.numel())
    return voxels.div_(spread.clamp_min(1e-6))


def finite_voxels(array: npt.NDArray[Any]) -> Tensor:
    """A float32 copy of the voxels; raises BadInput if one is not finite."""
    voxels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if array.dtype.kind == "f" and not torch.isfinite(voxels).all():
        raise BadInput("The image has voxels that are NaN or infinite.")
    return voxels


def _percentiles(array: npt.NDArray[Any]) -> list[float]:
    """Those of _CLIP_PERCENT, interpolated between neighbours in order."""
    places = [percent / 100 * (array.size - 1) for percent in _CLIP_PERCENT]
    wanted = sorted({bound for place in places for bound in (math.floor(place), math.ceil(place))})
    values = dict(zip(wanted, _in_order(array.ravel(order="K"), wanted), strict=True))
    return [values[math.floor(place)] * (1 - place % 1) + values[math.ceil(place)] * (place % 1) for place in places]


def _in_order(voxels: npt.NDArray[Any], ranks: Sequence[int]) -> list[float]:
    """The voxels of these ranks; in their own type, which is several times faster than as floats."""
    if voxels.dtype.kind in "iu" and voxels.itemsize < np.dtype(np.intp).itemsize:
        low, high = int(voxels.min()), int(voxels.max())
        if high - low < _MOST_COUNTED:
            counted = np.bincount(np.subtract(voxels, low, dtype=np.intp))
            return [float(low + rank) for rank in np.searchsorted(counted.cumsum(), ranks, side="right")]
    return [float(value) for value in np.partition(voxels, ranks)[ranks]]


def as_items(spec: ModelSpec, volume: Tensor, axis: int) -> Tensor:
    """(I, J, K) -> (n, 1, H, W) slices along the axis, or (1, 1, I, J, K) for a 3-D model."""
    return volume.movedim(axis, 0)[:, None].contiguous() if spec.spatial_dims == 2 else volume[None, None]


def restore(prepared: Prepared, maps: Tensor) -> Tensor:
    """(B, C, *padded) maps, such as probabilities, of some items back on the image's own grid: (B, C, *native)."""
    cut = maps[(slice(None), slice(None), *(slice(0, size) for size in prepared.resampled))]
    if prepared.resampled == prepared.native:
        return cut
    mode = "bilinear" if len(prepared.native) == 2 else "trilinear"
    return functional.interpolate(cut, size=prepared.native, mode=mode, align_corners=False)


def grid_spacing(prepared: Prepared, spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Mm along i, j, k of the network's grid, or along (slices, h, w) of slices, from the image's along i, j, k."""
    if len(prepared.native) == 2:
        own = [length for i, length in enumerate(spacing) if i != prepared.axis]
        return spacing[prepared.axis], *_scaled(prepared, own)
    return tuple(_scaled(prepared, spacing))


def _scaled(prepared: Prepared, own: Sequence[float]) -> list[float]:
    return [mm * n / m for mm, n, m in zip(own, prepared.native, prepared.resampled, strict=True)]


def prepare_label(spec: ModelSpec, mask: npt.NDArray[np.uint8], spacing: tuple[float, ...], axis: int) -> Tensor:
    """The mask on the network's grid: (n, *padded) uint8, nearest neighbour, padded with IGNORED."""
    items = as_items(spec, torch.from_numpy(np.ascontiguousarray(mask)), axis)
    size = _resampled_size(spec, tuple(items.shape[2:]), spacing, axis)
    if size != tuple(items.shape[2:]):
        items = functional.interpolate(items.float(), size=size, mode="nearest-exact").to(torch.uint8)
    return _padded(spec, items, IGNORED)[:, 0]


def _resampled_size(spec: ModelSpec, native: tuple[int, ...], spacing: tuple[float, ...], axis: int) -> tuple[int, ...]:
    if not spec.spacing:
        return native
    own = [length for i, length in enumerate(spacing) if spec.spatial_dims == 3 or i != axis]
    return tuple(max(1, round(n * mm / target)) for n, mm, target in zip(native, own, spec.spacing, strict=True))


def _linear(spec: ModelSpec) -> str:
    return "bilinear" if spec.spatial_dims == 2 else "trilinear"


def _padded(spec: ModelSpec, items: Tensor, value: int = 0) -> Tensor:
    """Padded at the far ends to the next multiples of the divisors; 0 is the image's mean after normalisation."""
    least = spec.smallest or (0,) * spec.spatial_dims
    sizes = [max(have, size) for have, size in zip(items.shape[2:], least, strict=True)]
    missing = [size - have + -size % n for have, size, n in zip(items.shape[2:], sizes, spec.divisors, strict=True)]
    if items.ndim == 5 and all(size <= n for size, n in zip(sizes, spec.divisors, strict=True)):
        missing[0] += spec.divisors[0]  # a volume's statistics at the bottleneck need more than one voxel
    if not any(missing):
        return items
    pairs = [amount for size in reversed(missing) for amount in (0, size)]
    return functional.pad(items, pairs, value=value)
