"""What strategies look at: numbers reduced on the device, so that voxels never leave the sweep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Signal:
    """One reduction of one view of a model.

    Attributes:
        name: unique among signals; the key under which a strategy finds its (N,) or (N, D) array.
        view: what the engine must compute once a batch, such as "probs" (B, C, *S).
        reduce: (B, ...) view -> (B,) or (B, D), on the view's device.
        model: the model that makes the view; "task" is the segmentation model.
        version: raise it when `reduce` changes: cached values of another version are not used.
    """

    name: str
    view: str
    reduce: Callable[[Tensor], Tensor]
    model: str = "task"
    version: int = 1


@dataclass(frozen=True)
class Batch:
    """Preprocessed input of some pool rows, in the order of `rows`."""

    rows: npt.NDArray[np.int64]
    data: object


class Views(Protocol):
    """The engine's side of a sweep: ready batches, and each view of a batch once."""

    def batches(self, rows: npt.NDArray[np.int64]) -> Iterator[Batch]:
        """Preprocessed batches that cover `rows` (every row once; rows of an unreadable image are left out)."""

    def compute(self, batch: Batch, views: frozenset[str]) -> Mapping[str, Tensor]:
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
        values: dict[str, FloatArray] = {}
        for signal in signals:
            value = signal.reduce(outputs[signal.view])
            if value.shape[:1] != (len(batch.rows),):
                raise ValueError(
                    f"Signal {signal.name!r} must give one value an item, ({len(batch.rows)}, ...), got {tuple(value.shape)}."
                )
            values[signal.name] = value.float().cpu().numpy()
        emit(batch.rows, values)
