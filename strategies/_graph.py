"""A two-layer graph convolutional network that learns which rows are labelled, on the graph of their similarity."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from loop.signals import FloatArray
from strategies._similarity import unit_rows

_ISOLATED = 1e-6
"""A degree below it is rounding, or as good as none."""

_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 5e-4


class SimilarityGraph:
    """A = (S - I) D^-1 + I with S_ij the cosine of rows i and j, and D the column sums of S - I. A is never formed.

    S - I has no diagonal, and a row that is like no other keeps to itself: its column of A is that of I. Coordinates of
    opposite sign count as nothing in common, so that no similarity is negative and no degree vanishes between them; for
    features that are not negative, as behind a ReLU, S is the cosine itself.

    Args:
        rows: (N, D) float64 of length 1, or 0, as of `unit_rows`.

    Source: Caramalau et al. 2021, eq. 3, and its released code.
    """

    def __init__(self, rows: FloatArray) -> None:
        signed = torch.from_numpy(rows)
        self._rows = torch.cat([signed.clamp_min(0), -signed.clamp_max(0)], 1) if (rows < 0).any() else signed
        self._own = self._rows.square().sum(1, keepdim=True)
        degrees = self._rows @ self._rows.sum(0)[:, None] - self._own
        self._share = torch.where(degrees > _ISOLATED, 1 / degrees, 0)

    def propagate(self, values: Tensor) -> Tensor:
        """A @ values, (N, C) float64, in O(N D C)."""
        shared = values * self._share
        return self._rows @ (self._rows.T @ shared) - self._own * shared + values


def hidden_features(
    features: FloatArray,
    labeled: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    hidden: int = 128,
    dropout: float = 0.3,
    epochs: int = 200,
    unlabeled_weight: float = 1.2,
) -> npt.NDArray[np.float32]:
    """Train the network to tell labelled rows from the others, and give what its first layer makes of each: (N, hidden).

    H = relu(A X W_1 + b_1), labelled = sigmoid(A dropout(H) W_2 + b_2), X the rows at length 1; Adam, one step an epoch, on
    -mean over the labelled of log p - unlabeled_weight * mean over the others of log(1 - p). Torch's own generator is
    neither read nor moved.

    Args:
        features: (N, D) finite.
        labeled: (N,) at least one, and not all.

    Raises:
        ValueError: all rows are labelled, or none, or the mask is misshapen.

    Source: Caramalau et al. 2021, eq. 4-6; CoreGCN of its released code.
    """
    if labeled.shape != (len(features),) or labeled.all() or not labeled.any():
        raise ValueError(
            f"The graph network needs labelled and unlabelled rows, got {labeled.sum()} labelled of {len(features)}."
        )
    rows, generator = unit_rows(features.astype(np.float64)), torch.Generator().manual_seed(int(rng.integers(2**63)))
    graph, mask = SimilarityGraph(rows), torch.from_numpy(labeled)
    seen = graph.propagate(torch.from_numpy(rows)).float()

    def uniform(columns: int, *shape: int) -> Tensor:
        """As graph convolutions begin: within 1 / sqrt(columns)."""
        values = torch.rand(*shape, generator=generator)
        return ((2 * values - 1) / columns**0.5).requires_grad_()

    first, first_bias = uniform(hidden, seen.shape[1], hidden), uniform(hidden, hidden)
    second, second_bias = uniform(1, hidden, 1), uniform(1, 1)
    optimiser = torch.optim.Adam(
        [first, first_bias, second, second_bias], lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    for _ in range(epochs):
        layer = torch.addmm(first_bias, seen, first).relu()
        kept = torch.rand(layer.shape, generator=generator) >= dropout
        logits = graph.propagate((layer * kept / (1 - dropout) @ second).double())[:, 0] + second_bias
        # log p and log(1 - p) by way of the logits: they stay finite where p is 0 or 1.
        loss = -functional.logsigmoid(logits[mask]).mean()
        loss = loss - unlabeled_weight * functional.logsigmoid(-logits[~mask]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found: npt.NDArray[np.float32] = torch.addmm(first_bias, seen, first).relu().numpy()
    return found
