"""A U-Net whose encoder is a ResNet-18, from scratch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.plain_unet import double_conv
from models.spec import ModelSpec

_ENCODER = (64, 64, 128, 256, 512)
"""Channels at 1/2, 1/4, ... 1/32 of the resolution."""
_DECODER = (256, 128, 64, 32, 16)
_DROPOUT = 0.1


class ResNetUNet(nn.Module):
    """(B, 1, h, w) -> logits (B, C, h, w); both sizes must be multiples of 32.

    Each decoder level doubles the size by the nearest neighbour, puts the encoder's features beside, and convolves twice.
    Dropout, of whole channels, starts behind the bottleneck.
    """

    def __init__(self, channels_out: int) -> None:
        super().__init__()
        # Imported here because `import monai` takes seconds that a command line or a test of the loop need not pay.
        from monai.networks.nets import resnet18

        encoder = resnet18(
            spatial_dims=2, n_input_channels=1, conv1_t_size=7, conv1_t_stride=2, shortcut_type="B",
            bias_downsample=False, feed_forward=False,
        )  # fmt: skip
        self.stem = nn.Sequential(encoder.conv1, encoder.bn1, nn.ReLU(inplace=True))
        self.pool = encoder.maxpool
        self.encoder = nn.ModuleList([encoder.layer1, encoder.layer2, encoder.layer3])
        self.bottleneck = nn.Sequential(encoder.layer4, nn.Dropout2d(_DROPOUT))
        skips = [*_ENCODER[-2::-1], 0]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Dropout2d(_DROPOUT), *double_conv(below + skip, width))
            for below, skip, width in zip([_ENCODER[-1], *_DECODER[:-1]], skips, _DECODER, strict=True)
        )
        self.head = nn.Conv2d(_DECODER[-1], channels_out, 1)

    def forward(self, data: Tensor) -> Tensor:
        """Logits."""
        skips = [self.stem(data)]
        data = self.pool(skips[0])
        for stage in self.encoder:
            skips.append(data := stage(data))
        data = self.bottleneck(data)
        for stage in self.decoder:
            data = functional.interpolate(data, scale_factor=2.0, mode="nearest")
            data = stage(torch.cat([data, skips.pop()], dim=1) if skips else data)
        logits: Tensor = self.head(data)
        return logits


def unet_r18(*, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()) -> ModelSpec:
    """U-Net with a ResNet-18 backbone on slices (ALGES paper, section 4), its last convolution 1x1 as in section 3.1."""
    return ModelSpec(
        name="unet_r18",
        labels=labels,
        spatial_dims=2,
        build=ResNetUNet,
        divisor=32,
        largest_patch=256,
        feature_layer="bottleneck",
        head_layer="head",
        bottleneck_conv="bottleneck.0.1.conv2",
        decoder_convs=tuple(f"decoder.{level}.{conv}" for level in range(len(_DECODER)) for conv in (1, 4)),
        loss_layers=(("bottleneck", 512), ("decoder.0", 256), ("decoder.1", 128), ("decoder.2", 64)),
        spacing=spacing,
        patch=patch,
    )
