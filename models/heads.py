"""Auxiliary heads: small modules beside a segmentation network that are trained with it and that strategies look at.

Their weights stand in the network's file under "heads.<name>.", so that one digest names all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from loop.errors import BadInput, unknown
from models.spec import ModelSpec
from models.weights import Weights

_PREFIX = "heads."
_WIDTH = 128
_CELLS = {2: 24, 3: 8}
"""Most positions of the attention along each axis: it compares all with all."""


class LossHead(nn.Module):
    """Predicts the loss of an item from several levels of a network's features (Yoo & Kweon 2019, section 3.2).

    Each level, averaged over space, goes through a linear layer and a ReLU; what comes out together makes one number.

    Args:
        channels: of each level.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)
        self.levels = nn.ModuleList(nn.Linear(width, _WIDTH) for width in channels)
        self.out = nn.Linear(_WIDTH * len(channels), 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, sum of channels) features averaged over space, level after level -> (B,), higher = more loss expected."""
        parts = zip(self.levels, vectors.split(self.channels, dim=1), strict=True)
        found: Tensor = self.out(torch.cat([level(part).relu() for level, part in parts], dim=1))
        return found[:, 0]


class DifficultyHead(nn.Module):
    """Says of each pixel how probable an error is, from softmax probabilities alone (DEAL, Xie et al. 2020, section 3.2).

    The probability attention module adds to a pixel's probabilities those of the pixels like it, gamma times, so that a
    semantic area has one difficulty; then a 1x1 convolution and a sigmoid. The attention is computed on the map averaged
    to at most 24 (2-D) or 8 (3-D) cells along each axis, and interpolated.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.cells = _CELLS[spatial_dims]
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(channels, 1, 1)
        # So few weights learn from the data alone; chance would stay in them for many steps.
        nn.init.zeros_(self.conv.weight)

    def logits(self, probs: Tensor) -> Tensor:
        """(B, C, *S) probabilities -> (B, 1, *S) difficulty before the sigmoid."""
        # In half precision the softmax over hundreds of nearly equal similarities would lose what tells them apart.
        with torch.autocast(probs.device.type, enabled=False):
            found: Tensor = self.conv(self.gamma * self._attended(probs.float()) + probs.float())
        return found

    def forward(self, probs: Tensor) -> Tensor:
        """(B, C, *S) probabilities -> (B, 1, *S) difficulty in (0, 1)."""
        return self.logits(probs).sigmoid()

    def _attended(self, probs: Tensor) -> Tensor:
        """(B, C, *S) of each pixel j, sum_i softmax_i(p_i . p_j) p_i."""
        size = probs.shape[2:]
        cells = [min(length, self.cells) for length in size]
        two = len(size) == 2
        coarse = (functional.adaptive_avg_pool2d if two else functional.adaptive_avg_pool3d)(probs, cells)
        rows = coarse.flatten(2).transpose(1, 2)[:, None]
        mixed = functional.scaled_dot_product_attention(rows, rows, rows, scale=1.0)
        maps = mixed[:, 0].transpose(1, 2).reshape(coarse.shape)
        return functional.interpolate(maps, size=size, mode="bilinear" if two else "trilinear", align_corners=False)


def _loss_head(spec: ModelSpec) -> nn.Module:
    if not spec.loss_layers:
        raise BadInput(f"The model {spec.name!r} does not say which layers a learning loss looks at.")
    return LossHead([width for _, width in spec.loss_layers])


def _difficulty_head(spec: ModelSpec) -> nn.Module:
    return DifficultyHead(spec.spatial_dims, spec.channels_out)


_HEADS: dict[str, Callable[[ModelSpec], nn.Module]] = {"deal": _difficulty_head, "learning_loss": _loss_head}


def names() -> list[str]:
    """The names of all heads, sorted."""
    return sorted(_HEADS)


def build(name: str, spec: ModelSpec, seed: int) -> nn.Module:
    """A freshly initialised head, the same for the same seed; the global generator is left as it was.

    Raises:
        NotFound: no such head. BadInput: the model cannot have it.
    """
    if name not in _HEADS:
        raise unknown("head", name, names())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _HEADS[name](spec)


def available(spec: ModelSpec) -> frozenset[str]:
    """The names of the heads that the model can have."""
    return frozenset(name for name in _HEADS if name != "learning_loss" or spec.loss_layers)


def check(names: Iterable[str], spec: ModelSpec) -> None:
    """Raise, as `build`, for the first head that the model cannot have."""
    for name in sorted(names):
        build(name, spec, 0)


def pooled(maps: Iterable[Tensor]) -> Tensor:
    """(B, d, *S) features of each level -> (B, sum of d), averaged over space."""
    return torch.cat([level.float().flatten(2).mean(2) for level in maps], dim=1)


def named(name: str, weights: Weights) -> dict[str, Tensor]:
    """A head's weights as they are called in the network's file."""
    return {f"{_PREFIX}{name}.{key}": value for key, value in weights.items()}


def without_heads(weights: Weights) -> dict[str, Tensor]:
    """The network's own weights."""
    return {key: value for key, value in weights.items() if not key.startswith(_PREFIX)}


def of_heads(weights: Weights) -> Mapping[str, dict[str, Tensor]]:
    """{name: weights} of the heads that a file holds; those that nobody knows are left out."""
    found = {
        name: {key.removeprefix(begin): value for key, value in weights.items() if key.startswith(begin)}
        for name, begin in ((name, f"{_PREFIX}{name}.") for name in names())
    }
    return {name: own for name, own in found.items() if own}
