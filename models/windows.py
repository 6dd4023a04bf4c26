"""A forward pass that fits into memory: whole inputs where they are small, overlapping windows where they are not."""

from torch import Tensor, nn

from models.spec import ModelSpec

_WINDOWS_AT_ONCE = 2


def logits(spec: ModelSpec, network: nn.Module, data: Tensor) -> Tensor:
    """(B, 1, *S) -> (B, C, *S); a volume larger than the patch (or the model's largest) goes through in windows."""
    window = spec.whole_patch or (spec.largest_patch,) * spec.spatial_dims
    if spec.spatial_dims == 2 or all(size <= bound for size, bound in zip(data.shape[2:], window, strict=True)):
        whole: Tensor = network(data)
        return whole
    # Imported here because `import monai` takes seconds that a 2-D model need not pay.
    from monai.inferers import sliding_window_inference

    parts: Tensor = sliding_window_inference(data, window, _WINDOWS_AT_ONCE, network, overlap=0.25, mode="gaussian")
    return parts
