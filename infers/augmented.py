"""Rotations there and back: bilinear, about the middle of the grid, with what fell outside known."""

import math

import torch
from torch import Tensor

_ROUNDING = 1e-9
"""Voxels; a source this close to a grid point is that point, so that right angles lose nothing."""


class Rotation:
    """A turn of (H, W) maps about their middle, in voxels: a rigid one where voxels are square.

    Attributes:
        inside: (H, W) bool, the pixels whose source lies on the grid; the others take the nearest edge.
    """

    def __init__(self, height: int, width: int, degrees: float, device: torch.device) -> None:
        angle = math.radians(degrees)
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
            torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
            indexing="ij",
        )
        rows = math.cos(angle) * y - math.sin(angle) * x + (height - 1) / 2
        columns = math.sin(angle) * y + math.cos(angle) * x + (width - 1) / 2
        self.inside = (_on_grid(rows, height) & _on_grid(columns, width)).to(device)
        (top, below), (left, beside) = _neighbours(rows, height), _neighbours(columns, width)
        self._corners = [
            ((row * width + column).flatten().to(device), (a * b).flatten().float().to(device))
            for row, a in (top, below)
            for column, b in (left, beside)
            if (a * b).any()
        ]

    def __call__(self, maps: Tensor) -> Tensor:
        """Turned maps of (..., H, W)."""
        flat = maps.flatten(-2)
        turned = sum((flat[..., index] * weight for index, weight in self._corners), torch.zeros_like(flat))
        return turned.unflatten(-1, maps.shape[-2:])


def _on_grid(places: Tensor, size: int) -> Tensor:
    return (places >= -_ROUNDING) & (places <= size - 1 + _ROUNDING)


def _neighbours(places: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(index, weight) of the grid points below and above."""
    places = places.clamp(0, size - 1)
    nearest = places.round()
    places = torch.where((places - nearest).abs() < _ROUNDING, nearest, places)
    low = places.floor()
    share = places - low
    return (low.long(), 1 - share), ((low.long() + 1).clamp_max(size - 1), share)


def angles(count: int, degrees: float, seed: int) -> list[float]:
    """0 for the item itself, then count - 1 angles drawn evenly from +-degrees."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (2 * torch.rand(count - 1, generator=generator, dtype=torch.float64) - 1) * degrees
    return [0.0, *drawn.tolist()]
