"""The one training loop: annotated voxels in, weights and metrics out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from loop.read_ahead import ahead
from models.heads import without_heads
from models.spec import ModelSpec
from models.weights import load_into
from trainers.batches import Batch, batches
from trainers.data import Case, Data, load
from trainers.descent import Descent
from trainers.heads import HeadsInTraining
from trainers.objectives import DualBranch, OneBranch, loss_named
from trainers.precision import Precision
from trainers.ranks import Ranks
from trainers.settings import Settings
from trainers.steps import weights_of
from trainers.validation import measure, validate


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
    ranks: Ranks | None = None,
) -> Trained:
    """Train on the annotated slices of the training cases, and measure on those of the validation cases.

    Args:
        start: weights to begin with; None begins from a seeded initialisation.
        heads: names of the auxiliary heads that are trained along.
        report: called with epoch, epochs, fraction, loss, dice, eta (s) after each epoch, and more often with fraction.
        warn: called with a sentence for each case that cannot be used (the others are trained on), and for each setting that
            had to give way.
        ranks: the processes that train this together, on `device` here; None is this one alone.

    Raises:
        NotFound: no such head. BadInput: no usable annotated slice of a training patient, `start` is of another network, the
            model cannot have a head, or memory does not suffice for one item.
    """
    data = cases if isinstance(cases, Data) else load(spec, cases, warn)
    ranks = ranks or Ranks(device)
    if settings.patience and not data.validation:
        warn("patience has no effect without annotated slices of validation patients.")
    # Dropout draws from torch's own generator: seeded here, and left as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed + ranks.rank)
        network = _network(spec, start, settings.seed, ranks)
        auxiliary = HeadsInTraining(spec, network, heads, settings.seed, device, start)
        objective = _objective(spec, network, data, settings, ranks, start)
        progress = _Progress(spec, network, objective, auxiliary, data, settings, ranks)
        progress.run(report, warn)
        objective.close()
    entry = progress.kept or progress.curve[-1]
    metrics = {key: entry[key] for key in ("epoch", "loss", "dice", "dice_per_class")} | {
        "training_items": sum(len(loaded.data) for loaded in data.training),
        "validation_items": sum(len(loaded.data) for loaded in data.validation),
    }
    return Trained(progress.weights(), metrics | progress.measured(), progress.curve)


def _network(spec: ModelSpec, start: Mapping[str, Tensor] | None, seed: int, ranks: Ranks) -> nn.Module:
    network = spec.network(seed)
    if start is not None:
        load_into(network, without_heads(start), spec.name)
    network = ranks.prepared(network).to(ranks.device).train()
    if ranks.device.type == "cuda" and spec.spatial_dims == 3:
        network = network.to(memory_format=torch.channels_last_3d)
    return network


def _objective(
    spec: ModelSpec,
    network: nn.Module,
    data: Data,
    settings: Settings,
    ranks: Ranks,
    start: Mapping[str, Tensor] | None,
) -> OneBranch:
    loss = loss_named(settings.loss, (loaded.target for loaded in data.training), spec.channels_out)
    if not settings.dual_branch:
        return OneBranch(loss, spec.output_weights, ranks.gathered)
    return DualBranch(loss, spec, network, ranks.gathered, seed=settings.seed, device=ranks.device, start=start)


class _Progress:
    """A training that is under way.

    Attributes:
        curve: an entry of each epoch so far. kept: the entry whose weights are kept, where a patience is set.
    """

    def __init__(
        self,
        spec: ModelSpec,
        network: nn.Module,
        objective: OneBranch,
        heads: HeadsInTraining,
        data: Data,
        settings: Settings,
        ranks: Ranks,
    ) -> None:
        self.spec, self.network, self.objective, self.heads, self.data = spec, network, objective, heads, data
        self.settings, self.ranks = settings, ranks
        self.precision = Precision.of(ranks.device, settings.amp)
        self.curve: list[dict[str, Any]] = []
        self.kept: dict[str, Any] | None = None
        self._best: Mapping[str, Tensor] = {}

    def run(self, report: Callable[..., None], warn: Callable[[str], None]) -> None:
        settings, ranks = self.settings, self.ranks
        total = settings.epochs * settings.steps_per_epoch
        descent = Descent(self.network, self.objective, self.heads, settings, total, self.precision, ranks, warn)
        began, losses = time.monotonic(), list[Tensor]()
        # disable=None: the bar shows on a terminal only.
        bar = tqdm(range(1, total + 1), desc="train", unit="step", disable=None if ranks.first else True)
        for step, batch in zip(bar, self._batches(total), strict=True):
            losses.append(descent.step(*batch, trained=(step - 1) / total))
            epoch, within = divmod(step, settings.steps_per_epoch)
            over = within == 0 and self._end_epoch(epoch, losses)
            progress = {"fraction": step / total, "eta": (time.monotonic() - began) * (total - step) / step}
            if over:
                progress = {"fraction": 1.0, "eta": 0.0}
            last = self.curve[-1] if self.curve else {}
            report(**{**last, **progress, "epoch": epoch + (within > 0), "epochs": settings.epochs})
            if over:
                bar.close()
                return

    def _batches(self, total: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches on the device; a GPU finds the next one cut already."""
        settings, ranks = self.settings, self.ranks
        stream = batches(
            self.spec, self.data.training, settings.batch_size, settings.seed, rank=ranks.rank, ranks=ranks.count
        )
        if ranks.device.type == "cuda":
            cut: Iterator[Batch] = (batch for _, batch in ahead(lambda _: next(stream), range(total)))
        else:
            cut = islice(stream, total)
        return (batch.on(ranks.device) for batch in cut)

    def _end_epoch(self, epoch: int, losses: list[Tensor]) -> bool:
        """Validate, and say whether the training is over."""
        loss = float(torch.stack(losses).mean())
        losses.clear()
        mean, per_class = self._validated()
        names = dict(zip(self.spec.labels, per_class, strict=True))
        self.curve.append({"epoch": epoch, "loss": loss, "dice": mean, "dice_per_class": names})
        if self.settings.patience and mean is not None and (self.kept is None or mean > self.kept["dice"]):
            self.kept, self._best = self.curve[-1], self._now()
        return self.ranks.agreed(self.kept is not None and epoch - self.kept["epoch"] >= self.settings.patience)

    def _validated(self) -> tuple[float | None, list[float | None]]:
        if not self.ranks.first:
            return None, [None] * len(self.spec.labels)
        return validate(self.spec, self.network, self.data.validation, self.precision)

    def measured(self) -> dict[str, Any]:
        """More of the validation cases, by the weights that are kept: slower than what every epoch measures."""
        if not self.ranks.first or not self.data.validation:
            return {}
        if self._best:
            load_into(self.network, without_heads(self._best), self.spec.name)
        rng = np.random.default_rng(self.settings.seed)
        return {"validation": measure(self.spec, self.network, self.data.validation, self.precision, rng)}

    def _now(self) -> dict[str, Tensor]:
        return {**weights_of(self.network), **self.heads.weights(), **self.objective.weights()}

    def weights(self) -> Mapping[str, Tensor]:
        """What the training made: the best epoch's where a patience is set and something validates, else the last one's."""
        return self._best or self._now()
