"""nnU-Net's self-configured network: everything but the labels comes from the plans of the campaign."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loop.errors import BadInput, Conflict
from models.plans import Plans
from models.preprocess import finite_voxels
from models.spec import ModelSpec

NAME = "nnunet"
_DROPOUT = 0.01
"""In training: the rate of the USIM paper's own code, so that MC dropout, which sets its own, sees nothing new."""

_LOSS_LEVELS = 4


def nnunet(
    *, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = (), plans: Plans | None = None
) -> ModelSpec:
    """The network of the plans, trained with deep supervision (USIM paper, section 3.2; Isensee et al. 2021).

    Raises:
        Conflict: there are no plans yet. BadInput: spacing or patch are set, or the plans hold another kind of network.
    """
    if spacing or patch:
        raise BadInput(f"The model {NAME!r} takes spacing and patch from its plans: leave the settings empty.")
    if plans is None:
        raise Conflict(
            f"The model {NAME!r} has not been planned yet: the first training or sweep does it, or `nextslice plan`."
        )
    used, order = plans.used, plans.order
    kind, architecture = used["architecture"]["network_class_name"], used["architecture"]["arch_kwargs"]
    if not kind.endswith(".PlainConvUNet"):
        raise BadInput(f"The plans must be of a PlainConvUNet, got {kind}. Plan again: nextslice plan --again.")
    strides, kernels = ([_ordered(level, order) for level in architecture[key]] for key in ("strides", "kernel_sizes"))
    planned = tuple(int(size) for size in _ordered(used["patch_size"], order))
    stages, widths = architecture["n_stages"], architecture["features_per_stage"]
    convolutions = architecture["n_conv_per_stage_decoder"]
    bottleneck = f"encoder.stages.{stages - 1}"
    last = architecture["n_conv_per_stage"][-1] - 1
    levels = [(bottleneck, widths[-1]), *((f"decoder.stages.{s}", widths[-2 - s]) for s in range(stages - 1))]
    return ModelSpec(
        name=NAME,
        labels=labels,
        spatial_dims=plans.spatial_dims,
        build=partial(
            _build, dims=plans.spatial_dims, architecture=architecture, strides=strides, kernel_sizes=kernels
        ),
        divisor=tuple(prod(level[axis] for level in strides) for axis in range(plans.spatial_dims)),
        largest_patch=max(planned),
        feature_layer=bottleneck,
        head_layer=f"decoder.seg_layers.{stages - 2}",
        bottleneck_conv=f"{bottleneck}.0.convs.{last}.all_modules.0",
        decoder_convs=tuple(
            f"decoder.stages.{s}.convs.{conv}.all_modules.0"
            for s in range(stages - 1)
            for conv in range(convolutions[s])
        ),
        loss_layers=tuple(levels[:_LOSS_LEVELS]),
        spacing=tuple(float(mm) for mm in _ordered(used["spacing"], order)),
        patch=planned,
        output_weights=output_weights(stages - 1),
        smallest=planned,
        batch_size=int(used["batch_size"]),
        normalise=_normalisation(plans),
        plans=plans.digest,
    )


def _build(
    channels_out: int, *, dims: int, architecture: Any, strides: list[list[int]], kernel_sizes: list[list[int]]
) -> nn.Module:
    # Imported here because nobody else needs nnU-Net's architectures.
    from models.planned_unet import PlannedUNet

    return PlannedUNet(dims, channels_out, architecture, strides=strides, kernel_sizes=kernel_sizes, dropout=_DROPOUT)


def output_weights(count: int) -> tuple[float, ...]:
    """nnU-Net's weights of deep supervision: 1, 1/2, 1/4, ..., 0 for the coarsest, scaled to add up to 1."""
    weights = [0.5**level for level in range(count)]
    if count > 1:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def _ordered(values: Sequence[Any], order: Sequence[int]) -> list[Any]:
    return [values[place] for place in order]


def _normalisation(plans: Plans) -> Any:
    scheme = plans.used["normalization_schemes"][0]
    if scheme == "CTNormalization":
        told = plans.content["foreground_intensity_properties_per_channel"]["0"]
        return partial(
            ct_normalised, low=told["percentile_00_5"], high=told["percentile_99_5"], mean=told["mean"], std=told["std"]
        )
    if scheme == "ZScoreNormalization":
        return partial(z_scored, only_non_zero=bool(plans.used["use_mask_for_norm"][0]))
    raise BadInput(f"The plans must say ZScoreNormalization or CTNormalization, got {scheme}.")


def ct_normalised(array: npt.NDArray[Any], *, low: float, high: float, mean: float, std: float) -> Tensor:
    """Clipped to [low, high], then (voxel - mean) / std, all four of the whole campaign (nnU-Net's CTNormalization)."""
    return finite_voxels(array).clamp_(low, high).sub_(mean).div_(max(std, 1e-8))


def z_scored(array: npt.NDArray[Any], *, only_non_zero: bool) -> Tensor:
    """Mean 0 and deviation 1 over the box that holds all voxels that are not 0 (nnU-Net's ZScoreNormalization on its crop).

    Args:
        only_non_zero: over those voxels and the holes in them instead; the others become 0.
    """
    voxels = finite_voxels(array)
    nonzero = voxels.numpy() != 0
    if not nonzero.any():
        return torch.zeros_like(voxels)
    if only_non_zero:
        from scipy.ndimage import binary_fill_holes

        mask = torch.from_numpy(binary_fill_holes(nonzero))
        return torch.where(mask, _standardised(voxels, voxels[mask]), 0.0)
    box = tuple(_extent(nonzero.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3))
    return _standardised(voxels, voxels[box])


def _standardised(voxels: Tensor, of: Tensor) -> Tensor:
    return (voxels - of.mean()) / of.std(correction=0).clamp_min(1e-8)


def _extent(used: npt.NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)
