"""Random but seeded changes of a training batch."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.preprocess import IGNORED

_ROTATION = math.radians(15)
_SCALE = 0.15
_INTENSITY = 0.15
_NOISE = 0.1


def augmented(data: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotated in the plane of the first two axes, scaled, brightened, noised. No mirroring: left and right differ.

    Args:
        data: (B, 1, *S). target: (B, *S) uint8; what comes in from outside is IGNORED.
    """
    n = len(data)
    grid = functional.affine_grid(
        _matrices(n, data.ndim - 2, generator).to(data.device), list(data.shape), align_corners=False
    )
    moved = functional.grid_sample(data, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Nearest-neighbour sampling of label + 1, so that the zeros from outside become IGNORED and not background.
    labels = functional.grid_sample(
        (target.float() + 1)[:, None], grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    labels = labels[:, 0].round()
    shape = (n,) + (1,) * (data.ndim - 1)
    gain = 1 + _INTENSITY * _uniform(generator, shape).to(data.device)
    shift = _INTENSITY * _uniform(generator, shape).to(data.device)
    noise = torch.randn(data.shape, generator=generator).to(data.device) * _NOISE
    return moved * gain + shift + noise, torch.where(labels == 0, IGNORED, labels - 1).to(torch.uint8)


def _uniform(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """In [-1, 1)."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _matrices(n: int, dims: int, generator: torch.Generator) -> Tensor:
    """(n, dims, dims + 1) rotation about the last axis times an isotropic scale."""
    angle = _ROTATION * _uniform(generator, (n,))
    scale = 1 + _SCALE * _uniform(generator, (n,))
    matrices = torch.zeros(n, dims, dims + 1)
    for axis in range(dims):
        matrices[:, axis, axis] = scale
    # affine_grid's first coordinate runs along the last axis: the last two rows turn the tensor's first two spatial axes.
    a, b = dims - 2, dims - 1
    matrices[:, a, a] = matrices[:, b, b] = scale * torch.cos(angle)
    matrices[:, a, b], matrices[:, b, a] = -scale * torch.sin(angle), scale * torch.sin(angle)
    return matrices
