"""What can be looked at in a model, and what the engine hands to a reduction for it.

A view is a small value: two strategies that ask for equal views share one computation. Shapes: B items, C classes with
background, *S an item's own grid, *S' the network's grid without padding.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Probs:
    """Softmax probabilities: Tensor (B, C, *S)."""


@dataclass(frozen=True)
class Features:
    """Bottleneck activations averaged over the item's space: Tensor (B, d).

    The input's padding takes part in the average. Of a volume in front of a 2-D model: the mean over its slices. Of a slice
    in front of a 3-D model: the average over the bottleneck positions nearest to that slice. Of a volume in windows: the
    mean over the windows; of a slice, over those that hold it.
    """


@dataclass(frozen=True)
class Head:
    """What the final 1x1 convolution sees and what becomes of it: HeadView, on the network's grid without padding."""


@dataclass(frozen=True)
class HeadView:
    """Penultimate activations z (B, d, *S') and softmax probabilities (B, C, *S'), pixel by pixel."""

    z: Tensor
    probs: Tensor


@dataclass(frozen=True)
class Dropout:
    """MC dropout: Passes over `passes` forward passes with dropout at `rate` (Gal & Ghahramani 2016).

    Batch normalisation stays as it is in prediction. The random numbers follow from the sweep's seed, the image and which
    of its items share a batch.
    """

    passes: int
    rate: float

    def __post_init__(self) -> None:
        if self.passes < 1 or not 0 <= self.rate < 1:
            raise ValueError(f"Dropout needs at least 1 pass and 0 <= rate < 1, got {self.passes} and {self.rate}.")


@dataclass(frozen=True)
class Passes:
    """Over stochastic passes p_t.

    Attributes:
        mean: (B, C, *S) mean_t p_t.
        variance: (B, C, *S) mean_t (p_t - mean)^2: divided by T, not T - 1.
        expected_entropy: (B, *S) mean_t H(p_t), in nats.
    """

    mean: Tensor
    variance: Tensor
    expected_entropy: Tensor


@dataclass(frozen=True)
class Augmented:
    """Test-time augmentation: Augmentations over `count` views, the item itself and count - 1 changed ones.

    A change is a rotation about the slice axis by an angle drawn from +-rotation_degrees, in voxels, and Gaussian noise of
    standard deviation `noise` on the normalised input (stochastic batches paper; TAAL). The angles are the same for all
    items of a sweep; they follow from its seed.
    """

    count: int
    rotation_degrees: float = 10.0
    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.count < 1 or self.rotation_degrees < 0 or self.noise < 0:
            raise ValueError(f"Augmented needs at least 1 view, and no negative rotation or noise, got {self}.")


@dataclass(frozen=True)
class Augmentations:
    """Over augmented views p_v, each brought back to the item's grid.

    Attributes:
        mean: (B, C, *S) mean_v p_v.
        expected_entropy: (B, *S) mean_v H(p_v), in nats.
        valid: (B, *S) bool: inside every view. What the other pixels hold means nothing.
    """

    mean: Tensor
    expected_entropy: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Ensemble:
    """Votes of the first `members` networks that the engine was given."""

    members: int

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"An ensemble needs at least 1 member, got {self.members}.")


@dataclass(frozen=True)
class Votes:
    """Over the networks of an ensemble.

    Attributes:
        mean: (B, C, *S) mean probability.
        modal_share: (B, *S) share of the networks whose likeliest class is the one most of them choose, in (0, 1].
    """

    mean: Tensor
    modal_share: Tensor


@dataclass(frozen=True)
class Gradients:
    """Tensor (B, D): each item's gradient of mean_S' log p(yhat), with yhat = argmax taken as given (USIM paper).

    Entries are the flattened weight, then the bias, of the bottleneck's last convolution ("bottleneck"), or the weights of
    the decoder's convolutions, without upsampling and head, one after the other ("decoder"). float32, in prediction mode.
    Of a volume in front of a 2-D model: the mean over its slices. Of a slice in front of a 3-D model: the score is that
    slice's. Of a volume in windows: the mean over the windows; of a slice, over those that hold it.

    Attributes:
        keep: first entries to keep; all where there are fewer.
        indices: entries to keep, in this order; not together with `keep`.
    """

    layer: Literal["bottleneck", "decoder"]
    keep: int | None = None
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.layer not in ("bottleneck", "decoder"):
            raise ValueError(f"layer must be bottleneck or decoder, got {self.layer!r}.")
        if self.keep is not None and self.indices is not None:
            raise ValueError("Gradients takes keep or indices, not both.")
        if (self.keep is not None and self.keep < 1) or (self.indices is not None and not self.indices):
            raise ValueError("Gradients must keep at least one entry.")


@dataclass(frozen=True)
class Embedding:
    """What a representation learner makes of an item: Tensor (B, D). Of a whole volume: the mean over its slices."""


@dataclass(frozen=True)
class PredictedLoss:
    """The loss that the head of the learning loss expects of an item: Tensor (B,), higher = more (Yoo & Kweon 2019).

    It sees features as `Features` says. Of a volume in front of a 2-D model: the mean over its slices.
    """

    head: ClassVar[str] = "learning_loss"


@dataclass(frozen=True)
class Difficulty:
    """How probable an error is: Tensor (B, *S) in (0, 1), from the softmax probabilities (DEAL, Xie et al. 2020)."""

    head: ClassVar[str] = "deal"


View = Probs | Features | Head | Dropout | Augmented | Ensemble | Gradients | Embedding | PredictedLoss | Difficulty


def entropy_map(probs: Tensor) -> Tensor:
    """(B, C, *S) probabilities -> (B, *S) entropy of each pixel, in nats, with 0 log 0 = 0."""
    # The same as xlogy, which is several times slower on the CPU: where p is 0, so is 0 * log(tiny).
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1)


def likeliest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(B, *S) highest value along the classes of (B, C, *S), and its class; the first of equals."""
    # Many times faster than max(1), which strides through memory; differentiable towards the chosen class alone.
    best, *others = maps.unbind(1)
    index = torch.zeros_like(best, dtype=torch.int64)
    for k, value in enumerate(others, 1):
        higher = value > best
        best, index = torch.where(higher, value, best), index.masked_fill(higher, k)
    return best, index
