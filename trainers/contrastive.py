"""Group contrastive learning: slices of one patient, volume or neighbourhood come to lie close together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from loop.errors import BadInput
from models.representation import Representation
from trainers.group_batches import GroupBatches
from trainers.representation import IntArray, Report, RepresentationSettings, Slices
from trainers.steps import descend, weights_of
from trainers.view_augmentation import random_views

TEMPERATURE = 0.5
EPOCHS = 100
MOST_STEPS, MOST_STEPS_ON_CPU = 50_000, 2_000
"""Of a training that was given no number of epochs: what the paper's 100 epochs on ACDC come to; and what takes a core half
an hour to an hour, because other sweeps wait for it."""

_LEARNING_RATE, _WEIGHT_DECAY = 3e-4, 1e-6
_PROJECTED = 64


@dataclass(frozen=True)
class Weights:
    """Of the terms of the loss, eq. (5): 1, lambda_1, lambda_2, lambda_3. A group whose weight is 0 is not in the batches.

    The default is the best on ACDC (appendix A).
    """

    nt_xent: float = 1.0
    patient: float = 0.05
    volume: float = 0.35
    adjacent: float = 0.0

    def __post_init__(self) -> None:
        if min(self.nt_xent, self.patient, self.volume, self.adjacent) < 0:
            raise ValueError(f"No term of the contrastive loss may weigh less than 0, got {self}.")

    @property
    def batch_size(self) -> int:
        """Slices: 9 where two groups are in use, else 8."""
        return 9 if (self.patient > 0) + (self.volume > 0) + (self.adjacent > 0) == 2 else 8


def weights_for(volume: IntArray, patient: IntArray) -> Weights:
    """The default, without the patient's term where no patient has more than one volume (appendix A)."""
    several = len(np.unique(volume)) > len(np.unique(patient))
    return Weights() if several else Weights(patient=0.0)


def nt_xent(similarity: Tensor) -> Tensor:
    """Mean over the 2N views of -log softmax of their other view among all views but themselves (SimCLR).

    Args:
        similarity: (2N, 2N) cosines over the temperature; view i + N is the other one of view i.
    """
    n = len(similarity)
    itself = torch.eye(n, dtype=torch.bool, device=similarity.device)
    other = torch.arange(n, device=similarity.device).roll(n // 2)
    return functional.cross_entropy(similarity.masked_fill(itself, -torch.inf), other)


def group_contrastive(similarity: Tensor, same_group: Tensor, same_patient: Tensor) -> Tensor:
    """Mean over all ordered pairs i, j of two views of one group of -log( exp s_ij / sum_k exp s_ik ).

    k runs over the views but i that are of i's group or of another patient: whoever is of i's patient but not of its group
    is neither drawn nearer nor pushed away.

    Args:
        similarity: (V, V) cosines over the temperature.
        same_group, same_patient: (V, V) bool.

    Source: metric-learning core-set paper, eq. (4).
    """
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    compared = others & (same_group | ~same_patient)
    whole = similarity.masked_fill(~compared, -torch.inf).logsumexp(1, keepdim=True)
    return (whole - similarity)[same_group & others].mean()


def contrastive_loss(z: Tensor, volume: Tensor, patient: Tensor, position: Tensor, *, weights: Weights) -> Tensor:
    """Eq. (5) of the metric-learning core-set paper, with cosines over a temperature of 0.5.

    Args:
        z: (2N, D) projections of N slices' first views, then of their second views.
        volume, patient, position: (N,) of the slices. Adjacent are slices of one volume up to 1 apart.
    """
    z = functional.normalize(z.float(), dim=1)
    similarity = z @ z.T / TEMPERATURE
    same_patient, same_volume = (_equal(numbers).repeat(2, 2) for numbers in (patient, volume))
    near = (position[:, None] - position).abs().repeat(2, 2) <= 1
    loss = weights.nt_xent * nt_xent(similarity)
    for weight, same_group in (
        (weights.patient, same_patient),
        (weights.volume, same_volume),
        (weights.adjacent, same_volume & near),
    ):
        if weight:
            loss = loss + weight * group_contrastive(similarity, same_group, same_patient)
    return loss


def _equal(numbers: Tensor) -> Tensor:
    return numbers[:, None] == numbers


class _Projected(nn.Module):
    """The encoder and, for as long as it learns, the head whose output the loss compares."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, _PROJECTED, bias=False)
        )

    def forward(self, items: Tensor) -> Tensor:
        projected: Tensor = self.head(self.encoder(items))
        return projected


def train(
    learner: Representation, slices: Slices, settings: RepresentationSettings, device: torch.device, report: Report
) -> dict[str, Tensor]:
    """Train the encoder from scratch on two random views of each slice; the weights of the encoder.

    Adam, 3e-4, weight decay 1e-6. Without a number of epochs: 100, but at most 50 000 steps, and 2 000 on a CPU.

    Args:
        report: called with epoch, epochs, fraction and loss, the mean of an epoch so far.

    Raises:
        BadInput: there is no slice.

    Source: metric-learning core-set paper, section 3.2.1.
    """
    if not len(slices):
        raise BadInput(f"There is no slice to train {learner.name} on.")
    weights = weights_for(slices.volume, slices.patient)
    batches = GroupBatches(
        slices.volume, slices.patient, slices.position, adjacent=weights.adjacent > 0, same_volume=weights.volume > 0,
        same_patient=weights.patient > 0, size=weights.batch_size,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _Projected(learner.network(settings.seed), learner.outputs).to(device).train()
    _optimise(network, slices, batches, weights, settings, device, report)
    return weights_of(network.encoder)


def _optimise(
    network: nn.Module,
    slices: Slices,
    batches: GroupBatches,
    weights: Weights,
    settings: RepresentationSettings,
    device: torch.device,
    report: Report,
) -> None:
    epochs = settings.epochs or EPOCHS
    planned = epochs * len(batches)
    most = MOST_STEPS_ON_CPU if device.type == "cpu" else MOST_STEPS
    total = planned if settings.epochs else min(planned, most)
    optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    generator, rng = torch.Generator().manual_seed(settings.seed), np.random.default_rng(settings.seed)
    volume, patient, position = (torch.from_numpy(a) for a in (slices.volume, slices.patient, slices.position))
    # disable=None: the bar shows on a terminal only.
    with tqdm(total=total, desc="train contrastive", unit="step", disable=None) as bar:
        for epoch in range(epochs):
            mean = 0.0
            for taken, batch in enumerate(batches.epoch(rng), 1):
                rows = torch.from_numpy(batch)
                items = slices.data[rows].to(device)
                views = torch.cat([random_views(items, generator) for _ in range(2)])
                with torch.autocast(device.type, enabled=device.type == "cuda"):
                    z = network(views)
                groups = (numbers[rows].to(device) for numbers in (volume, patient, position))
                loss = contrastive_loss(z, *groups, weights=weights)
                descend(optimiser, scaler, loss)
                mean += (float(loss.detach()) - mean) / taken
                step = epoch * len(batches) + taken
                bar.update(step - bar.n)
                report(epoch=epoch + 1, epochs=epochs, fraction=step / total, loss=mean)
                if step >= total:
                    return
