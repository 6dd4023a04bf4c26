"""nnU-Net's plain convolutional U-Net as its plans describe it, with dropout and without nnU-Net's second names of layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn


class PlannedUNet(PlainConvUNet):
    """(B, 1, *S) -> logits (B, C, *S); in training a list of the logits of every decoder level, the finest first.

    Args:
        architecture: the plans' arch_kwargs, of which strides and kernel sizes are given apart.
        strides: of each level, in the order of the input's axes. kernel_sizes: likewise.
        dropout: rate in training, behind every convolution but those of the outputs and of upsampling.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels_out: int,
        architecture: Mapping[str, Any],
        *,
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        dropout: float,
    ) -> None:
        two = spatial_dims == 2
        super().__init__(
            input_channels=1,
            num_classes=channels_out,
            n_stages=architecture["n_stages"],
            features_per_stage=architecture["features_per_stage"],
            conv_op=nn.Conv2d if two else nn.Conv3d,
            kernel_sizes=kernel_sizes,
            strides=strides,
            n_conv_per_stage=architecture["n_conv_per_stage"],
            n_conv_per_stage_decoder=architecture["n_conv_per_stage_decoder"],
            conv_bias=architecture["conv_bias"],
            norm_op=nn.InstanceNorm2d if two else nn.InstanceNorm3d,
            norm_op_kwargs=architecture["norm_op_kwargs"],
            dropout_op=nn.Dropout,
            dropout_op_kwargs={"p": dropout},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs=architecture["nonlin_kwargs"],
            deep_supervision=True,
        )
        self.apply(self.initialize)
        # Second names of the same modules, which would write the same weights up to four times.
        del self.decoder.encoder
        for module in self.modules():
            if isinstance(module, ConvDropoutNormReLU):
                del module.conv, module.dropout, module.norm, module.nonlin

    def forward(self, data: Tensor) -> Tensor | list[Tensor]:
        """Logits, in training of every level."""
        self.decoder.deep_supervision = self.training
        found: Tensor | list[Tensor] = super().forward(data)
        return found
