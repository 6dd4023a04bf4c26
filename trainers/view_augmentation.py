"""Random views of slices for contrastive learning, with torch alone."""

import math

import torch
from torch import Tensor
from torch.nn import functional

_CROP_AREA, _CROP_ASPECT = (0.8, 1.0), (3 / 4, 4 / 3)
_ROTATION, _SHEAR = math.radians(15), math.radians(10)
_SHIFT = 0.2
_SCALE = (0.8, 1.2)
_BLUR_TAPS, _BLUR_SIGMA = 5, (0.1, 2.0)
_ERASED = 0.2
_ERASED_AREA, _ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)


def random_views(items: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each slice, (B, 1, h, w) like the slices: cropped, flipped, moved, blurred, partly erased.

    Crop of 80 to 100 % of the area at an aspect of 3/4 to 4/3; left-right flip of every second; rotation +-15 degrees, shift
    +-20 %, scale 0.8 to 1.2, shear +-10 degrees; blur over 5 pixels with sigma 0.1 to 2; of every fifth, a rectangle of 2 to
    33 % erased. What comes in from outside and what is erased has the slice's lowest value.

    Args:
        generator: on the CPU, whatever device the slices are on: the same views everywhere.

    Source: metric-learning core-set paper's released code; the operations are torchvision's.
    """
    floor = items.amin(dim=(1, 2, 3), keepdim=True)
    grid = functional.affine_grid(
        _placements(len(items), generator).to(items.device), list(items.shape), align_corners=False
    )
    # Zeros come in from outside, so the lowest value has to be 0 for as long as slices are moved and erased.
    moved = functional.grid_sample(items - floor, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _blurred(moved, generator) * _kept(items, generator) + floor


def _uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _log_uniform(generator: torch.Generator, count: int, bounds: tuple[float, float]) -> Tensor:
    return _uniform(generator, count, math.log(bounds[0]), math.log(bounds[1])).exp()


def _placements(n: int, generator: torch.Generator) -> Tensor:
    """(n, 2, 3) from places of the view to places of the slice, in [-1, 1]: crop, then flip, then affine, as one map."""
    return (_crops(n, generator) @ _flips(n, generator) @ _affines(n, generator))[:, :2]


def _crops(n: int, generator: torch.Generator) -> Tensor:
    area, aspect = _uniform(generator, n, *_CROP_AREA), _log_uniform(generator, n, _CROP_ASPECT)
    width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
    left, top = ((1 - side) * _uniform(generator, n, -1, 1) for side in (width, height))
    return _matrices(n, [[width, 0, left], [0, height, top]])


def _flips(n: int, generator: torch.Generator) -> Tensor:
    sign = 1 - 2 * (torch.rand(n, generator=generator) < 0.5).float()
    return _matrices(n, [[sign, 0, 0], [0, 1, 0]])


def _affines(n: int, generator: torch.Generator) -> Tensor:
    angle = _uniform(generator, n, -_ROTATION, _ROTATION)
    shear = _uniform(generator, n, -_SHEAR, _SHEAR).tan()
    zoom = 1 / _uniform(generator, n, *_SCALE)
    # A shift by a share of the width; the slice is two units wide.
    x, y = (2 * _uniform(generator, n, -_SHIFT, _SHIFT) for _ in range(2))
    turned = _matrices(n, [[zoom * angle.cos(), -zoom * angle.sin(), x], [zoom * angle.sin(), zoom * angle.cos(), y]])
    return turned @ _matrices(n, [[1, shear, 0], [0, 1, 0]])


def _matrices(n: int, entries: list[list[Tensor | float]]) -> Tensor:
    """(n, 3, 3) with the last row 0 0 1."""
    matrices = torch.eye(3).repeat(n, 1, 1)
    for i, row in enumerate(entries):
        for j, value in enumerate(row):
            matrices[:, i, j] = torch.as_tensor(value)
    return matrices


def _blurred(items: Tensor, generator: torch.Generator) -> Tensor:
    """Each with a Gaussian of its own; one after the other along both axes."""
    n = len(items)
    offsets = torch.arange(_BLUR_TAPS) - _BLUR_TAPS // 2
    weights = torch.exp(-0.5 * (offsets / _uniform(generator, n, *_BLUR_SIGMA)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(items.device)
    half = _BLUR_TAPS // 2
    # A group of its own for each slice, so that one convolution blurs all.
    channels = functional.pad(items.movedim(1, 0), [half] * 4, mode="reflect")
    channels = functional.conv2d(channels, weights[:, None, :, None], groups=n)
    return functional.conv2d(channels, weights[:, None, None, :], groups=n).movedim(0, 1)


def _kept(items: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 1, h, w) 0 where a rectangle is erased, 1 elsewhere."""
    n, (h, w) = len(items), items.shape[2:]
    erased = torch.rand(n, generator=generator) < _ERASED
    area, aspect = _uniform(generator, n, *_ERASED_AREA), _log_uniform(generator, n, _ERASED_ASPECT)
    within = []
    for size, side in ((h, (area * aspect).sqrt()), (w, (area / aspect).sqrt())):
        side = side.clamp_max(1)
        start = (1 - side) * torch.rand(n, generator=generator)
        places = (torch.arange(size) + 0.5) / size
        within.append((places >= start[:, None]) & (places < (start + side)[:, None]))
    rectangle = within[0][:, :, None] & within[1][:, None, :] & erased[:, None, None]
    return (~rectangle)[:, None].to(items)
