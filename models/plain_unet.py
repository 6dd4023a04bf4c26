"""The plain U-Net: two convolutions a level, max pooling, upsampling, a copy of the encoder beside each decoder level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.spec import ModelSpec

_CHANNELS = (16, 32, 64, 128, 256)
"""The papers say "U-Net" and no widths; these are those of the usual comparison network of ACDC with scribbles."""
_DROPOUT = 0.1


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Twice 3x3 convolution, batch normalisation, ReLU: (B, inputs, h, w) -> (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class PlainUNet(nn.Module):
    """(B, 1, h, w) -> logits (B, C, h, w); both sizes must be multiples of 2 ** (len(channels) - 1).

    Args:
        channels: width of each level, the bottleneck's last; the head sees as many as the first level has.
        dropout: rate, of whole channels, behind the bottleneck and between upsampling and convolutions of the decoder.
    """

    def __init__(self, channels_out: int, channels: Sequence[int] = _CHANNELS, dropout: float = _DROPOUT) -> None:
        super().__init__()
        *levels, widest = channels
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(
            double_conv(below, width) for below, width in zip([1, *levels[:-1]], levels, strict=True)
        )
        self.bottleneck = nn.Sequential(double_conv(levels[-1], widest), nn.Dropout2d(dropout))
        pairs = list(zip([widest, *levels[:0:-1]], levels[::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, width, 2, 2) for below, width in pairs)
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(dropout), *double_conv(2 * width, width)) for _, width in pairs
        )
        self.head = nn.Conv2d(levels[0], channels_out, 1)

    def forward(self, data: Tensor) -> Tensor:
        """Logits."""
        skips = []
        for stage in self.encoder:
            skips.append(data := stage(data))
            data = self.pool(data)
        data = self.bottleneck(data)
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            data = stage(torch.cat([skip, up(data)], dim=1))
        logits: Tensor = self.head(data)
        return logits


def unet(*, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()) -> ModelSpec:
    """The U-Net of Ronneberger et al. 2015 on slices, as in the papers on stochastic batches and the metric core-set."""
    return ModelSpec(
        name="unet",
        labels=labels,
        spatial_dims=2,
        build=PlainUNet,
        divisor=2 ** (len(_CHANNELS) - 1),
        largest_patch=256,
        feature_layer="bottleneck",
        head_layer="head",
        bottleneck_conv="bottleneck.0.3",
        decoder_convs=tuple(f"decoder.{level}.{conv}" for level in range(len(_CHANNELS) - 1) for conv in (1, 4)),
        loss_layers=(("bottleneck", 256), ("decoder.0", 128), ("decoder.1", 64), ("decoder.2", 32)),
        spacing=spacing,
        patch=patch,
    )
