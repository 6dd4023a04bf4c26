"""What strategies look at: numbers reduced on the device, so that voxels never leave the sweep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loop.views import View

FloatArray = npt.NDArray[np.floating]


TASK = "task"
"""The model name of the segmentation model; others are representation learners."""


@dataclass(frozen=True)
class Signal:
    """One reduction of one view of a model.

    Attributes:
        name: unique among signals, [A-Za-z0-9_.-]+, parameters included; the key under which a strategy finds its (N,) or
            (N, D) array, and a folder on disk.
        view: what the engine must compute once a batch; `loop.views` says what `reduce` is given for it.
        reduce: what the view holds of B items -> (B,) or (B, D), on its device.
        model: the model that makes the view; TASK or a representation learner.
        version: raise it when `reduce` changes: cached values of another version are not used.
    """

    name: str
    view: View
    reduce: Callable[[Any], Tensor]
    model: str = TASK
    version: int = 1


@dataclass(frozen=True, eq=False)
class PoolMean:
    """One reduction averaged over some pool rows: one array for the pool, such as an empirical Fisher diagonal.

    Attributes:
        view, reduce: as of a Signal; (B,) or (B, D).
        rows: (R,) pool rows; a row that stands there twice counts twice.
    """

    name: str
    view: View
    reduce: Callable[[Any], Tensor]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Preprocessed input of some pool rows, in the order of `rows`."""

    rows: npt.NDArray[np.int64]
    data: object


class Views(Protocol):
    """The engine's side of a sweep: ready batches, and each view of a batch once."""

    def batches(self, rows: npt.NDArray[np.int64]) -> Iterator[Batch]:
        """Preprocessed batches that cover `rows` (every row once; rows of an unreadable image are left out)."""

    def compute(self, batch: Batch, views: frozenset[View]) -> Mapping[View, Any]:
        """The asked views of one batch, first axis aligned to batch.rows."""


def sweep(
    views: Views,
    signals: Sequence[Signal],
    rows: npt.NDArray[np.int64],
    emit: Callable[[npt.NDArray[np.int64], Mapping[str, FloatArray]], None],
) -> None:
    """Compute `signals` for `rows`: each view once a batch, all reductions that anyone needs, nothing else.

    Args:
        emit: called after each batch with its rows (B,) and {signal name: (B,) or (B, D) float32 array}.
    """
    wanted = frozenset(signal.view for signal in signals)
    for batch in views.batches(rows):
        outputs = views.compute(batch, wanted)
        emit(batch.rows, {signal.name: _reduced(signal, outputs, batch).float().cpu().numpy() for signal in signals})


def sweep_mean(views: Views, mean: PoolMean) -> npt.NDArray[np.float64]:
    """The mean of `mean.reduce` over `mean.rows`, accumulated in double precision as the batches come: (D,), or () for (B,).

    Rows of images that turn out to be unreadable do not count.

    Raises:
        ValueError: no row could be read, or the reduction gives something else than one value an item.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in views.batches(mean.rows):
        value = _reduced(mean, views.compute(batch, frozenset({mean.view})), batch)
        total = total.to(value.device) + value.double().sum(0)
        count += len(batch.rows)
    if not count:
        raise ValueError(f"{mean.name!r} is a mean over rows, but none of the {len(mean.rows)} could be read.")
    found: npt.NDArray[np.float64] = (total / count).cpu().numpy()
    return found


def _reduced(what: Signal | PoolMean, outputs: Mapping[View, Any], batch: Batch) -> Tensor:
    value = what.reduce(outputs[what.view])
    if value.shape[:1] != (len(batch.rows),):
        raise ValueError(
            f"Signal {what.name!r} must give one value an item, ({len(batch.rows)}, ...), got {tuple(value.shape)}."
        )
    return value
