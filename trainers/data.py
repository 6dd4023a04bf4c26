"""What a network is trained on: annotated slices, read and preprocessed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from datastore.volume_io import Volume, is_here, read_volume
from loop.errors import BadInput
from models.preprocess import IGNORED, grid_spacing, prepare, prepare_label
from models.spec import ModelSpec
from trainers.prepared_cache import Inputs, PreparedCache
from trainers.scribbles import with_outside


@dataclass(frozen=True)
class Case:
    """An image, its composite mask, and which slices of it are annotated.

    Attributes:
        split: "training" or "validation", by patient.
        version: of the image file, another one when it changes; "" keeps nothing that was made of it.
        unlabeled: value of the mask's voxels that nobody annotated on an annotated slice; None: there are none.
        outside: take some voxels outside strokes of background that enclose the others for background, as `with_outside`
            says; in training only.
        fetch: brings the image's file there, if it comes from elsewhere and is not there.
    """

    image_id: str
    image: Path
    mask: Path
    axis: int
    slices: Sequence[int]
    split: str
    version: str = ""
    unlabeled: int | None = None
    outside: bool = False
    fetch: Callable[[], object] = is_here


@dataclass(frozen=True)
class Loaded:
    """One case, annotated items only.

    Attributes:
        data: (n, 1, *S). target: (n, *S), class or IGNORED.
        spacing: mm along i, j, k of a volume, and along (slices, *S) of slices, on the network's grid.
        axis: of the slices in a volume's *S; 0 where the items are slices.
        whole: whether every slice of the image is annotated.
    """

    data: Tensor
    target: Tensor
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    axis: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Data:
    """What is annotated, read and preprocessed: several networks can be trained on the same."""

    training: Sequence[Loaded]
    validation: Sequence[Loaded]


def load(
    spec: ModelSpec,
    cases: Sequence[Case],
    warn: Callable[[str], None] = lambda text: None,
    cache: PreparedCache | None = None,
) -> Data:
    """Read the annotated slices.

    Args:
        warn: called with a sentence for each case that cannot be used; the others are.
        cache: keeps what was preprocessed of the images of cases with a version; None preprocesses all anew.

    Raises:
        BadInput: no usable annotated slice of a training patient.
    """
    training, validation = (list(_load(spec, cases, split, warn, cache)) for split in ("training", "validation"))
    if not training:
        raise BadInput("There is no usable annotated slice of a training patient yet. Label more, of other patients.")
    return Data(training, validation)


def _load(
    spec: ModelSpec, cases: Sequence[Case], split: str, warn: Callable[[str], None], cache: PreparedCache | None
) -> Iterator[Loaded]:
    for case in cases:
        if case.split != split:
            continue
        try:
            yield _read(spec, case, cache)
        except BadInput as error:
            warn(f"{case.image_id} was left out: {error}")


def _read(spec: ModelSpec, case: Case, cache: PreparedCache | None) -> Loaded:
    mask = read_volume(case.mask)
    n_slices = mask.array.shape[case.axis]
    rows = sorted(case.slices) if spec.spatial_dims == 2 else [0]
    # Slices that the image does not have are never asked for; the check of its size comes right after.
    asked = [row for row in rows if row < n_slices]

    def read() -> Inputs:
        return _inputs(spec, case, asked)

    inputs = cache.get(spec, case.image, case.version, case.axis, asked, read) if cache and case.version else read()
    if mask.array.shape != inputs.shape:
        raise BadInput(f"its label has {mask.array.shape} voxels, the image {inputs.shape}.")
    if max(case.slices) >= n_slices:
        raise BadInput(f"slice {max(case.slices)} is annotated, but the image has {n_slices} slices.")
    target = _target(spec, case, mask, inputs.spacing)
    axis = case.axis if spec.spatial_dims == 3 else 0
    return Loaded(inputs.of(rows), target[rows], inputs.grid, axis, len(set(case.slices)) == n_slices)


def _inputs(spec: ModelSpec, case: Case, rows: list[int]) -> Inputs:
    case.fetch()
    image = read_volume(case.image)
    prepared = prepare(spec, image.array, image.spacing, case.axis)
    rows = [row for row in rows if row < len(prepared.data)]
    return Inputs(image.array.shape, image.spacing, grid_spacing(prepared, image.spacing), rows, prepared.data[rows])


def _target(spec: ModelSpec, case: Case, mask: Volume, spacing: tuple[float, ...]) -> Tensor:
    """(n, *S) of all slices, or of the volume: class, or IGNORED where nobody annotated."""
    classes = _classes(spec, case, mask.array)
    known = np.full(mask.array.shape[case.axis], IGNORED, np.uint8)
    known[list(case.slices)] = 0
    # Broadcast along the slice axis: 255 wherever nobody annotated, the class elsewhere.
    blank = np.expand_dims(known, [axis for axis in range(3) if axis != case.axis])
    return prepare_label(spec, np.maximum(classes, blank), spacing, case.axis)


def _classes(spec: ModelSpec, case: Case, mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The class of each voxel, IGNORED where an annotated slice has no stroke."""
    with np.errstate(invalid="ignore"):
        classes = mask.astype(np.uint8)
    unlabeled = mask == case.unlabeled if case.unlabeled is not None else np.zeros(mask.shape, bool)
    if (classes != mask).any() or classes.max(initial=0, where=~unlabeled) > len(spec.labels):
        raise BadInput(f"its label holds values other than 0 to {len(spec.labels)}.")
    classes[unlabeled] = IGNORED
    return with_outside(classes, case.axis) if case.outside and case.split == "training" else classes
