"""A forward pass that fits into memory: whole inputs where they are small, overlapping windows where they are not."""

from collections.abc import Callable
from itertools import product
from typing import Any

from torch import Tensor, nn

from models.spec import ModelSpec

_WINDOWS_AT_ONCE = 2
_OVERLAP = 0.25


def logits(spec: ModelSpec, network: nn.Module, data: Tensor) -> Tensor:
    """(B, 1, *S) -> (B, C, *S); a volume larger than the patch (or the model's largest) goes through in windows."""
    found: Tensor = through_windows(spec, network, data)
    return found


def through_windows(spec: ModelSpec, run: Callable[[Tensor], Any], data: Tensor) -> Any:
    """`run` on the whole input or on its windows; what overlaps is blended, near the windows' middles more.

    Args:
        run: (b, 1, *s) -> a map (b, D, *s) or a tuple of such maps; the result has the same form, on the input's grid.
    """
    if fits(spec, tuple(data.shape[2:])):
        return run(data)
    # Imported here because `import monai` takes seconds that a 2-D model need not pay.
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(data, _window(spec), _WINDOWS_AT_ONCE, run, overlap=_OVERLAP, mode="gaussian")


def fits(spec: ModelSpec, size: tuple[int, ...]) -> bool:
    """Whether an input of that size goes through the network whole."""
    return spec.spatial_dims == 2 or all(n <= bound for n, bound in zip(size, _window(spec), strict=True))


def windows(spec: ModelSpec, size: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Overlapping windows that cover an input of that size, for what is averaged over windows and not blended."""
    if fits(spec, size):
        return [tuple(slice(0, n) for n in size)]
    return [tuple(window) for window in product(*map(_along, size, _window(spec)))]


def _along(size: int, window: int) -> list[slice]:
    window = min(window, size)
    starts = [*range(0, size - window, max(1, int(window * (1 - _OVERLAP)))), size - window]
    return [slice(start, start + window) for start in starts]


def _window(spec: ModelSpec) -> tuple[int, ...]:
    return spec.whole_patch or (spec.largest_patch,) * spec.spatial_dims
