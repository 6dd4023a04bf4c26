"""The one training loop: annotated voxels in, weights and metrics out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from datastore.volume_io import read_volume
from loop.errors import BadInput
from loop.views import likeliest
from models.heads import without_heads
from models.preprocess import IGNORED, prepare, prepare_label
from models.spec import ModelSpec
from models.weights import load_into
from models.windows import logits
from trainers.augment import augmented
from trainers.heads import HeadsInTraining
from trainers.metrics import dice, dice_counts, mean_dice
from trainers.objectives import DualBranch, OneBranch, loss_named
from trainers.scribbles import with_outside
from trainers.steps import descend, weights_of

_WARM_UP = 0.21
"""Share of the steps; 1 / 0.21 is no whole number because OneCycleLR divides by zero where warming up is one step."""

_VALIDATION_BATCH = 32


@dataclass(frozen=True)
class Case:
    """An image, its composite mask, and which slices of it are annotated.

    Attributes:
        split: "training" or "validation", by patient.
        unlabeled: value of the mask's voxels that nobody annotated on an annotated slice; None: there are none.
        outside: take some voxels outside strokes of background that enclose the others for background, as `with_outside`
            says; in training only.
    """

    image_id: str
    image: Path
    mask: Path
    axis: int
    slices: Sequence[int]
    split: str
    unlabeled: int | None = None
    outside: bool = False


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train; `seed` fixes initialisation, sampling and augmentation.

    Attributes:
        loss: "dice_ce", "ce" or "weighted_ce", of annotated voxels.
        dual_branch: train along a second decoder that says what unannotated voxels may be (scribbles).
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    seed: int
    loss: str = "dice_ce"
    dual_branch: bool = False


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


@dataclass(frozen=True)
class _Loaded:
    """(n, 1, *S) inputs and (n, *S) targets of one case, annotated items only."""

    data: Tensor
    target: Tensor


@dataclass(frozen=True)
class Data:
    """What is annotated, read and preprocessed: several networks can be trained on the same."""

    training: Sequence[_Loaded]
    validation: Sequence[_Loaded]


def load(spec: ModelSpec, cases: Sequence[Case], warn: Callable[[str], None] = lambda text: None) -> Data:
    """Read the annotated slices.

    Args:
        warn: called with a sentence for each case that cannot be used; the others are.

    Raises:
        BadInput: no usable annotated slice of a training patient.
    """
    training, validation = (list(_load(spec, cases, split, warn)) for split in ("training", "validation"))
    if not training:
        raise BadInput("There is no usable annotated slice of a training patient yet. Label more, of other patients.")
    return Data(training, validation)


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
        objective = _objective(spec, network, data, settings, device, start)
        curve = _optimise(spec, network, objective, auxiliary, data, settings, device, report)
        objective.close()
    weights = {**weights_of(network), **auxiliary.weights(), **objective.weights()}
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


def _objective(
    spec: ModelSpec,
    network: torch.nn.Module,
    data: Data,
    settings: Settings,
    device: torch.device,
    start: Mapping[str, Tensor] | None,
) -> OneBranch:
    loss = loss_named(settings.loss, (loaded.target for loaded in data.training), spec.channels_out)
    if not settings.dual_branch:
        return OneBranch(loss)
    return DualBranch(loss, spec, network, seed=settings.seed, device=device, start=start)


def _load(spec: ModelSpec, cases: Sequence[Case], split: str, warn: Callable[[str], None]) -> Iterator[_Loaded]:
    for case in cases:
        if case.split != split:
            continue
        try:
            yield _read(spec, case)
        except BadInput as error:
            warn(f"{case.image_id} was left out: {error}")


def _read(spec: ModelSpec, case: Case) -> _Loaded:
    image, mask = read_volume(case.image), read_volume(case.mask)
    if mask.array.shape != image.array.shape:
        raise BadInput(f"its label has {mask.array.shape} voxels, the image {image.array.shape}.")
    classes = _classes(spec, case, mask.array)
    n_slices = mask.array.shape[case.axis]
    if max(case.slices) >= n_slices:
        raise BadInput(f"slice {max(case.slices)} is annotated, but the image has {n_slices} slices.")
    known = np.full(n_slices, IGNORED, np.uint8)
    known[list(case.slices)] = 0
    # Broadcast along the slice axis: 255 wherever nobody annotated, the class elsewhere.
    blank = np.expand_dims(known, [axis for axis in range(3) if axis != case.axis])
    target = prepare_label(spec, np.maximum(classes, blank), image.spacing, case.axis)
    data = prepare(spec, image.array, image.spacing, case.axis).data
    rows = list(case.slices) if spec.spatial_dims == 2 else [0]
    return _Loaded(data[rows], target[rows])


def _classes(spec: ModelSpec, case: Case, mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The class of each voxel, IGNORED where an annotated slice has no stroke."""
    with np.errstate(invalid="ignore"):
        classes = mask.astype(np.uint8)
    unlabeled = mask == case.unlabeled if case.unlabeled is not None else np.zeros(mask.shape, bool)
    if (classes != mask).any() or classes.max(initial=0, where=~unlabeled) > len(spec.labels):
        raise BadInput(f"its label holds values other than 0 to {len(spec.labels)}.")
    classes[unlabeled] = IGNORED
    return with_outside(classes, case.axis) if case.outside and case.split == "training" else classes


def _optimise(
    spec: ModelSpec,
    network: torch.nn.Module,
    objective: OneBranch,
    heads: HeadsInTraining,
    data: Data,
    settings: Settings,
    device: torch.device,
    report: Callable[..., None],
) -> list[dict[str, Any]]:
    total = settings.epochs * settings.steps_per_epoch
    groups = [
        {"params": [*network.parameters(), *objective.parameters()], "lr": settings.learning_rate},
        *heads.parameters(settings.learning_rate),
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=total, pct_start=_WARM_UP
    )
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    batches = _batches(spec, data.training, settings)
    curve: list[dict[str, Any]] = []
    began, losses = time.monotonic(), []
    # disable=None: the bar shows on a terminal only.
    for step in tqdm(range(1, total + 1), desc="train", unit="step", disable=None):
        items, target = (part.to(device) for part in next(batches))
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            logits = network(items)
            loss = objective(items, logits, target, (step - 1) / total)
            further = heads.loss(logits, target, (step - 1) // settings.steps_per_epoch / settings.epochs)
        descend(optimiser, scaler, loss + further)
        schedule.step()
        losses.append(float(loss.detach()))
        progress = {"fraction": step / total, "eta": (time.monotonic() - began) * (total - step) / step}
        epoch, ended = divmod(step, settings.steps_per_epoch)
        if ended == 0:
            mean, per_class = _validate(spec, network, data.validation, device)
            names = dict(zip(spec.labels, per_class, strict=True))
            curve.append({"epoch": epoch, "loss": float(np.mean(losses)), "dice": mean, "dice_per_class": names})
            losses = []
        report(**{**(curve[-1] if curve else {}), **progress, "epoch": epoch + (ended > 0), "epochs": settings.epochs})
    return curve


def _batches(spec: ModelSpec, training: Sequence[_Loaded], settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless seeded batches: items drawn evenly, every second one cut around foreground, augmented."""
    generator = torch.Generator().manual_seed(settings.seed)
    items = [(loaded, row) for loaded in training for row in range(len(loaded.data))]
    patch = _patch_size(spec, training)
    order: list[int] = []
    while True:
        cuts = []
        for index in range(settings.batch_size):
            order = order or torch.randperm(len(items), generator=generator).tolist()
            loaded, row = items[order.pop()]
            cuts.append(_cut(loaded.data[row], loaded.target[row], patch, generator, around_foreground=index % 2 == 0))
        data, target = (torch.stack(parts) for parts in zip(*cuts, strict=True))
        yield augmented(data, target, generator)


def _patch_size(spec: ModelSpec, training: Sequence[_Loaded]) -> tuple[int, ...]:
    """The configured patch, else the largest case up to the model's bound; a multiple of the divisor."""
    if spec.patch:
        return spec.whole_patch
    largest = np.max([loaded.data.shape[2:] for loaded in training], axis=0)
    return tuple(int(min(size, spec.largest_patch)) for size in largest)


def _cut(
    data: Tensor, target: Tensor, patch: tuple[int, ...], generator: torch.Generator, *, around_foreground: bool
) -> tuple[Tensor, Tensor]:
    """A patch of one item, padded where the item is smaller."""
    starts = []
    centre = _foreground_voxel(target, generator) if around_foreground else None
    for axis, size in enumerate(patch):
        room = max(0, target.shape[axis] - size)
        start = int(torch.randint(room + 1, (1,), generator=generator))
        starts.append(start if centre is None else min(room, max(0, centre[axis] - size // 2)))
    window = tuple(slice(start, start + size) for start, size in zip(starts, patch, strict=True))
    data, target = data[(slice(None), *window)], target[window]
    missing = [size - have for size, have in zip(patch, target.shape, strict=True)]
    if any(missing):
        pairs = [amount for lack in reversed(missing) for amount in (0, lack)]
        data, target = (
            torch.nn.functional.pad(data, pairs),
            torch.nn.functional.pad(target, pairs, value=IGNORED),
        )
    return data, target


def _foreground_voxel(target: Tensor, generator: torch.Generator) -> list[int] | None:
    found = ((target > 0) & (target != IGNORED)).nonzero()
    if not len(found):
        return None
    voxel: list[int] = found[int(torch.randint(len(found), (1,), generator=generator))].tolist()
    return voxel


def _validate(
    spec: ModelSpec, network: torch.nn.Module, validation: Sequence[_Loaded], device: torch.device
) -> tuple[float | None, list[float | None]]:
    """Mean Dice and Dice per class over the annotated slices of the validation cases."""
    if not validation:
        return None, [None] * len(spec.labels)
    network.eval()
    scores = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=device.type == "cuda"):
        for loaded in validation:
            starts = range(0, len(loaded.data), _VALIDATION_BATCH)
            batches = (loaded.data[start : start + _VALIDATION_BATCH].to(device) for start in starts)
            parts = [likeliest(logits(spec, network, batch))[1].cpu() for batch in batches]
            scores.append(dice(dice_counts(torch.cat(parts), loaded.target, spec.channels_out)))
    network.train()
    return mean_dice(np.array(scores))
