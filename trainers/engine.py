"""The one training loop: annotated voxels in, weights and metrics out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.heads import without_heads
from models.spec import ModelSpec
from models.weights import load_into
from trainers.batches import batches
from trainers.data import Case, Data, load
from trainers.heads import HeadsInTraining
from trainers.losses import partial_dice_ce
from trainers.steps import descend, weights_of
from trainers.validation import validate

_WARM_UP = 0.21
"""Share of the steps; 1 / 0.21 is no whole number because OneCycleLR divides by zero where warming up is one step."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; `seed` fixes initialisation, sampling and augmentation."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a training made.

    Attributes:
        weights: of the network and of its auxiliary heads.
        metrics: dice (mean over classes, None without validation labels), dice_per_class by name, loss, and what it used.
        curve: one entry an epoch.
    """

    weights: Mapping[str, Tensor]
    metrics: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)


def train(
    spec: ModelSpec,
    cases: Sequence[Case] | Data,
    settings: Settings,
    *,
    device: torch.device,
    start: Mapping[str, Tensor] | None = None,
    heads: Sequence[str] = (),
    report: Callable[..., None] = lambda **progress: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train on the annotated slices of the training cases, and measure on those of the validation cases.

    Args:
        start: weights to begin with; None begins from a seeded initialisation.
        heads: names of the auxiliary heads that are trained along.
        report: called with epoch, epochs, fraction, loss, dice, eta (s) after each epoch, and more often with fraction.
        warn: called with a sentence for each case that cannot be used; the others are trained on.

    Raises:
        NotFound: no such head. BadInput: no usable annotated slice of a training patient, `start` is of another network, or
            the model cannot have a head.
    """
    data = cases if isinstance(cases, Data) else load(spec, cases, warn)
    # Dropout draws from torch's own generator: seeded here, and left as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        network = _network(spec, start, settings.seed, device)
        auxiliary = HeadsInTraining(spec, network, heads, settings.seed, device, start)
        curve = _optimise(spec, network, auxiliary, data, settings, device, report)
    weights = {**weights_of(network), **auxiliary.weights()}
    metrics = {key: curve[-1][key] for key in ("loss", "dice", "dice_per_class")} | {
        "training_items": sum(len(loaded.data) for loaded in data.training),
        "validation_items": sum(len(loaded.data) for loaded in data.validation),
    }
    return Trained(weights, metrics, curve)


def _network(spec: ModelSpec, start: Mapping[str, Tensor] | None, seed: int, device: torch.device) -> torch.nn.Module:
    network = spec.network(seed)
    if start is not None:
        load_into(network, without_heads(start), spec.name)
    network = network.to(device).train()
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last if spec.spatial_dims == 2 else torch.channels_last_3d)
    return network


def _optimise(
    spec: ModelSpec,
    network: torch.nn.Module,
    heads: HeadsInTraining,
    data: Data,
    settings: Settings,
    device: torch.device,
    report: Callable[..., None],
) -> list[dict[str, Any]]:
    total = settings.epochs * settings.steps_per_epoch
    groups = [
        {"params": list(network.parameters()), "lr": settings.learning_rate},
        *heads.parameters(settings.learning_rate),
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=total, pct_start=_WARM_UP
    )
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    stream = batches(spec, data.training, settings.batch_size, settings.seed)
    curve: list[dict[str, Any]] = []
    began, losses = time.monotonic(), []
    # disable=None: the bar shows on a terminal only.
    for step in tqdm(range(1, total + 1), desc="train", unit="step", disable=None):
        items, target = (part.to(device) for part in next(stream))
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            logits = network(items)
            loss = partial_dice_ce(logits, target)
            further = heads.loss(logits, target, (step - 1) // settings.steps_per_epoch / settings.epochs)
        descend(optimiser, scaler, loss + further)
        schedule.step()
        losses.append(float(loss.detach()))
        progress = {"fraction": step / total, "eta": (time.monotonic() - began) * (total - step) / step}
        epoch, ended = divmod(step, settings.steps_per_epoch)
        if ended == 0:
            mean, per_class = validate(spec, network, data.validation, device)
            names = dict(zip(spec.labels, per_class, strict=True))
            curve.append({"epoch": epoch, "loss": float(np.mean(losses)), "dice": mean, "dice_per_class": names})
            losses = []
        report(**{**(curve[-1] if curve else {}), **progress, "epoch": epoch + (ended > 0), "epochs": settings.epochs})
    return curve
