"""What a segmentation network is, in one object that training, inference and sweep share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from loop.errors import BadInput


@dataclass(frozen=True)
class ModelSpec:
    """A network and everything about it that is not weights.

    Attributes:
        labels: class names; class k of the output is labels[k - 1], class 0 is background.
        spatial_dims: 2 (slices) or 3 (volumes).
        build: makes a network with `channels_out` output channels: (B, 1, *S) -> logits (B, C, *S); in training mode it may
            return a list of such, the logits first, then further ones of full or of lower resolution (deep supervision).
        divisor: input sizes are padded to a multiple of it; one number an axis where the axes differ.
        spacing: voxel size in mm that inputs are resampled to along the model's axes; () keeps the image's own.
        patch: training patch in voxels; () lets the cases decide.
        largest_patch: bound, along each axis, of the patch that the cases decide.
        feature_layer: name of the bottleneck module; its output, (B, d, *S'), describes an item.
        head_layer: name of the final 1x1 convolution, from d penultimate channels to the classes; "" where there is none.
        bottleneck_conv: name of the bottleneck's last convolution; "" where there is none.
        decoder_convs: names of the decoder's convolutions, without upsampling and head, in the order of the forward pass.
        loss_layers: (name, channels) of the modules whose outputs, (B, channels, *S'), the learning loss looks at.
        dropout_layers: names of the dropout modules that MC dropout draws from; () means every one in the network.
        output_weights: of the loss of each entry of the list that `build`'s network returns in training; () where it is none.
        smallest: size that smaller inputs are padded to; () is none but the divisor.
        batch_size: items in an optimiser step, where the settings do not say.
        normalise: voxels (I, J, K) -> float32 of the same shape; None is `models.preprocess.normalised`.
        plans: digest of the plans that the network was built from; "" where there are none.
    """

    name: str
    labels: tuple[str, ...]
    spatial_dims: int
    build: Callable[[int], nn.Module]
    divisor: int | tuple[int, ...]
    largest_patch: int
    feature_layer: str
    head_layer: str = ""
    bottleneck_conv: str = ""
    decoder_convs: tuple[str, ...] = ()
    loss_layers: tuple[tuple[str, int], ...] = ()
    dropout_layers: tuple[str, ...] = ()
    spacing: tuple[float, ...] = ()
    patch: tuple[int, ...] = ()
    output_weights: tuple[float, ...] = ()
    smallest: tuple[int, ...] = ()
    batch_size: int = 8
    normalise: Callable[[npt.NDArray[Any]], Tensor] | None = None
    plans: str = ""

    def __post_init__(self) -> None:
        for key in ("spacing", "patch"):
            value = getattr(self, key)
            if value and len(value) != self.spatial_dims:
                raise BadInput(
                    f"{key} must have {self.spatial_dims} numbers for the model {self.name!r}, got {len(value)}."
                )
            if any(not number > 0 for number in value):
                raise BadInput(f"{key} must be positive, got {value}.")

    @property
    def channels_out(self) -> int:
        """Classes with background."""
        return len(self.labels) + 1

    @property
    def divisors(self) -> tuple[int, ...]:
        """The divisor of each axis."""
        return self.divisor if isinstance(self.divisor, tuple) else (self.divisor,) * self.spatial_dims

    @property
    def whole_patch(self) -> tuple[int, ...]:
        """The patch, rounded up to what the network can halve; () as `patch`."""
        return tuple(-(-size // n) * n for size, n in zip(self.patch, self.divisors, strict=False))

    def network(self, seed: int) -> nn.Module:
        """A freshly initialised network, the same for the same seed; the global generator is left as it was.

        Of slices it is channels-last, in which convolutions are faster on CPUs too; those of volumes are on CUDA only.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.build(self.channels_out)
        return network.to(memory_format=torch.channels_last) if self.spatial_dims == 2 else network
