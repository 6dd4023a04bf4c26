"""Residual U-Nets for slices and for volumes."""

from functools import partial

from torch import nn

from models.spec import ModelSpec

_CHANNELS = (16, 32, 64, 128)
_DROPOUT = 0.1
_LOSS_LAYERS = (("bottleneck", 128), ("decoder.0", 32), ("decoder.1", 16), ("decoder.2", 16))


def _build(channels_out: int, *, spatial_dims: int) -> nn.Module:
    # Imported here because `import monai` takes seconds that a command line or a test of the loop need not pay.
    from models.residual_unet import ResidualUNet

    return ResidualUNet(
        spatial_dims,
        channels_out,
        channels=_CHANNELS,
        # Not an item's own statistics: those of a volume that was padded to the training patch are not those of the volume.
        norm="BATCH",
        dropout=_DROPOUT,
    )


def _spec(
    name: str,
    spatial_dims: int,
    largest_patch: int,
    labels: tuple[str, ...],
    spacing: tuple[float, ...],
    patch: tuple[int, ...],
) -> ModelSpec:
    return ModelSpec(
        name=name,
        labels=labels,
        spatial_dims=spatial_dims,
        build=partial(_build, spatial_dims=spatial_dims),
        divisor=2 ** (len(_CHANNELS) - 1),
        largest_patch=largest_patch,
        feature_layer="bottleneck",
        head_layer="head",
        bottleneck_conv="bottleneck.0.conv.unit1.conv",
        loss_layers=_LOSS_LAYERS,
        decoder_convs=tuple(f"decoder.{level}.0.conv.unit0.conv" for level in range(len(_CHANNELS) - 1)),
        spacing=spacing,
        patch=patch,
    )


def unet2d(*, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()) -> ModelSpec:
    """U-Net on slices."""
    return _spec("unet2d", 2, 256, labels, spacing, patch)


def unet3d(*, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()) -> ModelSpec:
    """U-Net on volumes."""
    return _spec("unet3d", 3, 96, labels, spacing, patch)
