"""A deeply supervised network like DCAN: what the three deepest levels see is brought to full size, judged, and merged."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.plain_unet import double_conv
from models.spec import ModelSpec

_CHANNELS = (32, 64, 128, 256, 256)
"""Of the levels, the abstraction layer's last; the papers state none for slices of MRI."""
_BRANCHES = 3
_WIDTH = 16
_DROPOUT = 0.5
_AUXILIARY = 0.25
"""Weight of an auxiliary classifier's loss, the fused one's being 1, before they are scaled to add up to 1."""


class DCAN(nn.Module):
    """(B, 1, h, w) -> logits (B, C, h, w); in training a list of those of the merged branches and of each branch.

    Args:
        dropout: rate of spatial dropout, of whole channels, on the abstraction layer and before each branch.
    """

    def __init__(self, channels_out: int, dropout: float = _DROPOUT) -> None:
        super().__init__()
        *levels, widest = _CHANNELS
        self.pool = nn.MaxPool2d(2)
        self.encoder = nn.ModuleList(
            double_conv(below, width) for below, width in zip([1, *levels[:-1]], levels, strict=True)
        )
        self.bottleneck = nn.Sequential(double_conv(levels[-1], widest), nn.Dropout2d(dropout))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Dropout2d(dropout),
                nn.Conv2d(width, _WIDTH, 3, padding=1, bias=False),
                nn.BatchNorm2d(_WIDTH),
                nn.ReLU(),
            )
            for width in _CHANNELS[-_BRANCHES:]
        )
        self.auxiliary = nn.ModuleList(nn.Conv2d(_WIDTH, channels_out, 1) for _ in range(_BRANCHES))
        self.merge = nn.Sequential(
            nn.Conv2d(_BRANCHES * _WIDTH, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU()
        )
        self.head = nn.Conv2d(_WIDTH, channels_out, 1)

    def forward(self, data: Tensor) -> Tensor | list[Tensor]:
        """Logits, in training with those of the branches behind them."""
        size, levels = data.shape[2:], []
        for stage in self.encoder:
            levels.append(data := stage(data))
            data = self.pool(data)
        levels.append(self.bottleneck(data))
        maps = [
            functional.interpolate(branch(level), size=size, mode="bilinear", align_corners=False)
            for branch, level in zip(self.branches, levels[-_BRANCHES:], strict=True)
        ]
        logits: Tensor = self.head(self.merge(torch.cat(maps, dim=1)))
        if not self.training:
            return logits
        return [logits, *(judge(part) for judge, part in zip(self.auxiliary, maps, strict=True))]


def dcan(*, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()) -> ModelSpec:
    """DCAN-like network on slices with spatial dropout of 0.5 (BSQ paper, sections 2.1 and 2.2; Chen et al. 2016)."""
    weights = (1.0, *(_AUXILIARY,) * _BRANCHES)
    return ModelSpec(
        name="dcan",
        labels=labels,
        spatial_dims=2,
        build=DCAN,
        divisor=2 ** (len(_CHANNELS) - 1),
        largest_patch=256,
        feature_layer="bottleneck",
        head_layer="head",
        bottleneck_conv="bottleneck.0.3",
        decoder_convs=(*(f"branches.{branch}.1" for branch in range(_BRANCHES)), "merge.0"),
        loss_layers=(("bottleneck", 256), *((f"branches.{branch}", _WIDTH) for branch in range(_BRANCHES))),
        spacing=spacing,
        patch=patch,
        output_weights=tuple(weight / sum(weights) for weight in weights),
    )
