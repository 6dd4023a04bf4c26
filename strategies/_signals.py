"""Reductions of what a model shows of B items to one number, (B,), or one vector, (B, D), an item.

p (B, C, *S) are softmax probabilities with background as class 0. Natural logarithm, xlogy(0) = 0. Pixels are averaged.
A signal's name holds its parameters, because values are kept on disk under it.
"""

import hashlib
from collections.abc import Callable
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor

from loop.signals import Signal
from loop.views import (
    Augmentations,
    Augmented,
    Difficulty,
    Dropout,
    Embedding,
    Ensemble,
    Features,
    Gradients,
    Head,
    HeadView,
    Passes,
    PredictedLoss,
    Probs,
    Votes,
    entropy_map,
    likeliest,
)

AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda pixels: pixels.flatten(1).mean(1),
    "sum": lambda pixels: pixels.flatten(1).sum(1),
}


def _two_best(probs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, *S) largest and second largest probability; one pass, where a sort along the classes strides through memory."""
    first, *others = probs.unbind(1)
    best, second = first, torch.zeros_like(first)
    for p in others:
        second = torch.maximum(second, torch.minimum(best, p))
        best = torch.maximum(best, p)
    return best, second


def _best(probs: Tensor) -> Tensor:
    """(B, *S) largest probability."""
    return reduce(torch.maximum, probs.unbind(1))


def margin_map(probs: Tensor) -> Tensor:
    """(B, *S) minus the gap between the two likeliest classes, in [-1, 0]."""
    best, second = _two_best(probs)
    return second - best


def least_confidence_map(probs: Tensor) -> Tensor:
    """(B, *S) minus the probability of the likeliest class."""
    return -_best(probs)


def _reduce(probs: Tensor, pixel_map: Callable[[Tensor], Tensor], aggregate: str) -> Tensor:
    return AGGREGATIONS[aggregate](pixel_map(probs))


def pixel_signal(name: str, pixel_map: Callable[[Tensor], Tensor], aggregate: str) -> Signal:
    """The signal that aggregates a pixel map over an item.

    Raises:
        ValueError: unknown aggregation.
    """
    if aggregate not in AGGREGATIONS:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATIONS)}, got {aggregate!r}.")
    return Signal(f"{name}_{aggregate}", Probs(), partial(_reduce, pixel_map=pixel_map, aggregate=aggregate))


def foreground_fraction(probs: Tensor) -> Tensor:
    """(B,) share of pixels whose likeliest class is not background (class 0); equal probabilities are background."""
    return (_best(probs[:, 1:]) > probs[:, 0]).flatten(1).float().mean(1)


FOREGROUND_FRACTION = Signal("foreground_fraction", Probs(), foreground_fraction)


def _mean(maps: Tensor) -> Tensor:
    """(B, C, *S) -> (B, C) mean over the pixels."""
    return maps.flatten(2).mean(2)


def class_fractions(probs: Tensor) -> Tensor:
    """(B, C) mean_S p_c."""
    return _mean(probs)


CLASS_FRACTIONS = Signal("class_fractions", Probs(), class_fractions)
"""(N, C) share of the item that the model gives to each class."""


def class_entropy(probs: Tensor) -> Tensor:
    """(B, C) mean_S( p_c * H ): uncertainty where the model sees class c (ClaSP PE, Luth 2026)."""
    # One matrix product; the weighted maps would be C times the size of the entropy.
    weighted = torch.bmm(probs.flatten(2), entropy_map(probs).flatten(1)[..., None])[..., 0]
    return weighted / probs[0, 0].numel()


CLASS_ENTROPY = Signal("class_entropy", Probs(), class_entropy)
"""(N, C) class-weighted entropy in nats, higher = more uncertain."""


# --- Monte Carlo dropout


def class_variance(passes: Passes) -> Tensor:
    """(B, C) mean_S var_t p_tc, divided by T (USIM paper, section 3)."""
    return _mean(passes.variance)


def variance(passes: Passes, background: bool) -> Tensor:
    """(B,) mean over the classes, or all but background, of mean_S var_t p_t (BSQ paper, eq. 2)."""
    return class_variance(passes)[:, 0 if background else 1 :].mean(1)


def mean_std(passes: Passes) -> Tensor:
    """(B,) mean over classes and pixels of std_t p_t (Kendall 2017)."""
    return passes.variance.sqrt().flatten(1).mean(1)


def mutual_information(passes: Passes) -> Tensor:
    """(B,) mean_S( H(mean_t p_t) - mean_t H(p_t) ) in nats, never below 0 (BALD, Houlsby 2011)."""
    return (entropy_map(passes.mean) - passes.expected_entropy).flatten(1).mean(1).clamp_min(0)


def _dropout_signal(name: str, reduce: Callable[[Passes], Tensor], passes: int, rate: float) -> Signal:
    return Signal(f"{name}_T{passes}_p{rate}", Dropout(passes, rate), reduce)


def mc_variance(passes: int, rate: float, *, background: bool = True) -> Signal:
    """(N,) predictive variance of MC dropout, mean over classes and pixels, higher = more uncertain (BSQ paper, eq. 2)."""
    name = "mc_variance" if background else "mc_variance_foreground"
    return _dropout_signal(name, partial(variance, background=background), passes, rate)


def mc_class_variance(passes: int, rate: float) -> Signal:
    """(N, C) predictive variance of each class, mean over pixels (USIM paper)."""
    return _dropout_signal("mc_class_variance", class_variance, passes, rate)


def mc_mean_std(passes: int, rate: float) -> Signal:
    """(N,) mean standard deviation of MC dropout, higher = more uncertain (Kendall 2017)."""
    return _dropout_signal("mc_mean_std", mean_std, passes, rate)


def mc_bald(passes: int, rate: float) -> Signal:
    """(N,) mutual information of prediction and weights in nats, higher = more uncertain (BALD)."""
    return _dropout_signal("mc_bald", mutual_information, passes, rate)


# --- test-time augmentation and ensembles


def jensen_shannon(views: Augmentations) -> Tensor:
    """(B,) mean over the valid pixels of H(mean_v p) - mean_v H(p), never below 0; no valid pixel: 0 (TAAL)."""
    divergence = (entropy_map(views.mean) - views.expected_entropy).clamp_min(0)
    valid = views.valid.flatten(1)
    return torch.where(valid, divergence.flatten(1), 0).sum(1) / valid.sum(1).clamp_min(1)


def tta_divergence(count: int, rotation_degrees: float = 10.0, noise: float = 0.01) -> Signal:
    """(N,) Jensen-Shannon divergence in nats among `count` augmented views, higher = more uncertain (paper 4, TAAL)."""
    name = f"tta_divergence_V{count}_r{rotation_degrees}_n{noise}"
    return Signal(name, Augmented(count, rotation_degrees, noise), jensen_shannon)


def disagreement(votes: Votes) -> Tensor:
    """(B,) mean_S( 1 - share of the modal class )."""
    return 1 - votes.modal_share.flatten(1).mean(1)


def variance_ratio(members: int) -> Signal:
    """(N,) variation ratio of an ensemble's votes, higher = more uncertain (Beluch 2018; paper 5)."""
    return Signal(f"variance_ratio_M{members}", Ensemble(members), disagreement)


def mean_entropy(votes: Votes) -> Tensor:
    """(B,) mean_S H(mean_m p_m) in nats."""
    return entropy_map(votes.mean).flatten(1).mean(1)


def ensemble_entropy(members: int) -> Signal:
    """(N,) entropy of an ensemble's mean prediction, higher = more uncertain (paper 5)."""
    return Signal(f"ensemble_entropy_M{members}", Ensemble(members), mean_entropy)


# --- auxiliary heads


def _same(values: Tensor) -> Tensor:
    return values


PREDICTED_LOSS = Signal("predicted_loss", PredictedLoss(), _same)
"""(N,) loss that the network expects of itself, higher = more (Yoo & Kweon 2019)."""


def histogram_entropy(difficulty: Tensor, bins: int) -> Tensor:
    """(B,) entropy in nats of the histogram of an item's values, in equal bins over [0, 1] (DEAL, Xie et al. 2020)."""
    bin_of = (difficulty.flatten(1) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(len(bin_of), bins, device=bin_of.device)
    counts.scatter_add_(1, bin_of, torch.ones_like(bin_of, dtype=counts.dtype))
    shares = counts / bin_of.shape[1]
    return -torch.xlogy(shares, shares).sum(1)


def difficulty_entropy(bins: int) -> Signal:
    """(N,) entropy of the difficulty's histogram, higher = parts of more different difficulty (DEAL)."""
    return Signal(f"difficulty_entropy_{bins}", Difficulty(), partial(histogram_entropy, bins=bins))


# --- vectors

BOTTLENECK_FEATURES = Signal("bottleneck_features", Features(), _same)
"""(N, d) globally averaged bottleneck activations."""

CONTRASTIVE_FEATURES = Signal("contrastive_features", Embedding(), _same, model="contrastive")
"""(N, 512) output of the group-contrastive encoder, not normalised (metric-learning core-set paper, section 3.2)."""

INFO_VAE_LATENT = Signal("info_vae_latent", Embedding(), _same, model="info_vae")
"""(N, 200) the mean of q(z | x) of an infoVAE that was trained on the pool (BSQ paper, section 2.3)."""


def image_gradient(head: HeadView) -> Tensor:
    """(B, K * d) gradient of the cross-entropy with the own prediction, mean over pixels, with respect to the head's weight.

    g_k = mean_S (p_k - 1[k = yhat]) z, class after class (ALGES paper, eq. 4).
    """
    residual = head.probs.flatten(2).clone()
    best = likeliest(residual)[1][:, None]
    residual.scatter_add_(1, best, torch.full_like(best, -1, dtype=residual.dtype))
    return torch.bmm(residual, head.z.flatten(2).transpose(1, 2)).flatten(1) / residual.shape[2]


ALGES_IMAGE = Signal("alges_image", Head(), image_gradient)
"""(N, K * d) gradient embedding, background a class like the others (ALGES paper, eq. 4)."""


def semantic_gradient(head: HeadView) -> Tensor:
    """(B, K) u_k = sum over the pixels with yhat = k of the Frobenius norm of their gradient (ALGES paper, eq. 6's text).

    The norm of (p - e_yhat) z^T is sqrt(sum_c p_c^2 + 1 - 2 max p) * ||z||.
    """
    probs = head.probs.flatten(2)
    highest, best = likeliest(probs)
    error = (probs.square().sum(1) + 1 - 2 * highest).clamp_min(0).sqrt()
    norms = error * head.z.flatten(2).square().sum(1).sqrt()
    return torch.zeros_like(probs[:, :, 0]).scatter_add_(1, best, norms)


ALGES_SEMANTIC = Signal("alges_semantic", Head(), semantic_gradient)
"""(N, K) summed gradient norm of each predicted class (ALGES paper, eq. 6)."""


def gradients(
    layer: Literal["bottleneck", "decoder"], *, keep: int | None = None, indices: tuple[int, ...] | None = None
) -> Signal:
    """(N, D) gradient of mean_S log p(yhat) with respect to a layer's weights (USIM paper, section 3)."""
    kept = "all"
    if keep is not None:
        kept = f"first{keep}"
    if indices is not None:
        kept = f"{len(indices)}of{hashlib.sha256(repr(indices).encode()).hexdigest()[:12]}"
    return Signal(f"gradients_{layer}_{kept}", Gradients(layer, keep, indices), _same)
