"""A residual U-Net of MONAI's blocks whose parts have names: encoder, bottleneck, decoder, head."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution, ResidualUnit
from monai.networks.layers.factories import Dropout
from torch import Tensor, nn


class ResidualUNet(nn.Module):
    """(B, 1, *S) -> logits (B, C, *S); every size in S must be a multiple of 2 ** (len(channels) - 1).

    Dropout, of whole channels, starts behind the bottleneck's convolutions: what lies before is the same in every pass of
    MC dropout, so that it needs to run only once.

    Args:
        channels: width of each level, the bottleneck's last; the head sees as many as the first level has.
        norm: MONAI's name of the normalisation, or (name, arguments).
        dropout: rate of dropout in training.
    """

    def __init__(
        self, spatial_dims: int, channels_out: int, *, channels: Sequence[int], norm: Any, dropout: float
    ) -> None:
        super().__init__()
        *levels, widest = channels
        drop = Dropout[Dropout.DROPOUT, spatial_dims]
        self.encoder = nn.ModuleList(
            ResidualUnit(spatial_dims, below, width, strides=2, subunits=2, norm=norm)
            for below, width in zip([1, *levels[:-1]], levels, strict=True)
        )
        self.bottleneck = nn.Sequential(
            ResidualUnit(spatial_dims, levels[-1], widest, subunits=2, norm=norm), drop(dropout)
        )
        skips = levels[::-1]
        outs = [*skips[1:], levels[0]]
        # Convolved before it is upsampled, at a quarter of the cost; the head needs no more than 16 channels at full size.
        self.decoder = nn.ModuleList(
            nn.Sequential(
                ResidualUnit(spatial_dims, below + skip, out, subunits=1, norm=norm),
                drop(dropout),
                Convolution(spatial_dims, out, out, strides=2, norm=norm, is_transposed=True),
            )
            for below, skip, out in zip([widest, *outs[:-1]], skips, outs, strict=True)
        )
        self.head = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(levels[0], channels_out, 1)

    def forward(self, data: Tensor) -> Tensor:
        """Logits."""
        skips = []
        for stage in self.encoder:
            data = stage(data)
            skips.append(data)
        data = self.bottleneck(data)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            data = stage(torch.cat([skip, data], dim=1))
        logits: Tensor = self.head(data)
        return logits
