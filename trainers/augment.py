"""Random but seeded changes of a training batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from models.preprocess import IGNORED

_ROTATION = math.radians(15)
_SCALE = 0.15
_INTENSITY = 0.15
_NOISE = 0.1


@dataclass(frozen=True)
class Changes:
    """What is done to each of B items of a batch.

    Attributes:
        angle: (B,) radians. scale: (B,). gain: (B,). shift: (B,). noise: (B, 1, *S), added at the end.
    """

    angle: Tensor
    scale: Tensor
    gain: Tensor
    shift: Tensor
    noise: Tensor

    @classmethod
    def drawn(cls, generators: Sequence[torch.Generator], size: Sequence[int]) -> Self:
        """Those of each item from its own generator, on the CPU: the same whatever else is in the batch, on any device."""
        # In [-1, 1).
        uniform = torch.stack([2 * torch.rand(4, generator=generator) - 1 for generator in generators])
        noise = torch.stack([torch.randn(1, *size, generator=generator) for generator in generators])
        angle, scale, gain, shift = uniform.T
        return cls(_ROTATION * angle, 1 + _SCALE * scale, 1 + _INTENSITY * gain, _INTENSITY * shift, noise.mul_(_NOISE))

    def to(self, device: torch.device) -> "Changes":
        """The same on the device."""
        return Changes(
            *(
                part.to(device, non_blocking=True)
                for part in (self.angle, self.scale, self.gain, self.shift, self.noise)
            )
        )


def augmented(data: Tensor, target: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
    """Rotated in the plane of the first two axes, scaled, brightened, noised. No mirroring: left and right differ.

    Args:
        data: (B, 1, *S). target: (B, *S) uint8; what comes in from outside is IGNORED.
    """
    changes = changes.to(data.device)
    grid = functional.affine_grid(_matrices(changes, data.ndim - 2), list(data.shape), align_corners=False)
    moved = functional.grid_sample(data, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Nearest-neighbour sampling of label + 1, so that the zeros from outside become IGNORED and not background.
    labels = functional.grid_sample(
        (target.float() + 1)[:, None], grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    labels = labels[:, 0].round()
    shape = (len(data),) + (1,) * (data.ndim - 1)
    brightened = torch.addcmul(changes.shift.view(shape), moved, changes.gain.view(shape))
    return brightened.add_(changes.noise), torch.where(labels == 0, IGNORED, labels - 1).to(torch.uint8)


def _matrices(changes: Changes, dims: int) -> Tensor:
    """(B, dims, dims + 1) rotation about the last axis times an isotropic scale."""
    angle, scale = changes.angle, changes.scale
    matrices = angle.new_zeros(len(angle), dims, dims + 1)
    for axis in range(dims):
        matrices[:, axis, axis] = scale
    # affine_grid's first coordinate runs along the last axis: the last two rows turn the tensor's first two spatial axes.
    a, b = dims - 2, dims - 1
    matrices[:, a, a] = matrices[:, b, b] = scale * torch.cos(angle)
    matrices[:, a, b], matrices[:, b, a] = -scale * torch.sin(angle), scale * torch.sin(angle)
    return matrices
