"""The engine: preprocessed images in, probabilities on the image's own grid out."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from datastore.volume_io import Volume
from infers.source import Source
from infers.views import Inputs, look, probabilities, volume_of_slices
from loop.errors import BadInput
from loop.pool import Pool
from loop.read_ahead import ahead
from loop.signals import Batch
from loop.views import View, entropy_map, likeliest
from models import heads
from models.preprocess import Prepared, prepare, restore
from models.spec import ModelSpec
from models.weights import load_into


def pick_device(wanted: str) -> torch.device:
    """The device a setting means; "auto" is CUDA where it is there.

    Raises:
        BadInput: CUDA is asked for and not there, or no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise BadInput(f"device must be auto, cpu, cuda or cuda:N, got {wanted!r}.")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {wanted!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


class Segmenter:
    """A network with weights, ready to predict.

    Args:
        weights: of the network and of its auxiliary heads; None leaves the network as `seed` initialised it, without heads.
        batch: most items in one forward pass.
        members: weights of the networks of an ensemble, which vote when a sweep asks for `Ensemble`.
        seed: of the initialisation, and of the random numbers of dropout and augmentation.

    Raises:
        BadInput: weights are of another network.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor] | None,
        *,
        device: torch.device,
        batch: int = 64,
        members: Sequence[Mapping[str, Tensor]] = (),
        seed: int = 0,
    ) -> None:
        self.spec, self.device, self.batch, self.seed = spec, device, batch, seed
        self.network = self._network(weights)
        self.heads: Mapping[str, nn.Module] = {
            name: self._head(name, own) for name, own in heads.of_heads(weights or {}).items()
        }
        self.members: Sequence[nn.Module] = [self._network(member) for member in members]

    def _network(self, weights: Mapping[str, Tensor] | None) -> nn.Module:
        network = self.spec.network(self.seed)
        if weights is not None:
            load_into(network, heads.without_heads(weights), self.spec.name)
        return network.to(self.device).eval()

    def _head(self, name: str, weights: Mapping[str, Tensor]) -> nn.Module:
        head = heads.build(name, self.spec, self.seed)
        load_into(head, weights, f"{self.spec.name}, head {name}")
        return head.to(self.device).eval()

    def probabilities(self, data: Tensor) -> Tensor:
        """(B, 1, *padded) -> softmax (B, C, *padded) float32 on the device."""
        with torch.inference_mode():
            return probabilities(self, self.network, data.to(self.device, non_blocking=True))

    def predict(self, volume: Volume, axis: int) -> npt.NDArray[np.uint8]:
        """The mask (I, J, K): the likeliest class of each voxel."""
        return self._mapped(volume, axis, lambda probs: [likeliest(probs)[1].to(torch.uint8)])[0]

    def predict_with_uncertainty(
        self, volume: Volume, axis: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """The mask, and the entropy of each voxel's classes (I, J, K): 0 is certain, 255 is ln C, all classes alike."""
        mask, entropy = self._mapped(
            volume, axis, lambda probs: [likeliest(probs)[1].to(torch.uint8), scaled_entropy(probs)]
        )
        return mask, entropy

    def _mapped(
        self, volume: Volume, axis: int, of: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[npt.NDArray[np.uint8]]:
        """What `of` makes of the probabilities (B, C, *native), each (B, *native), put together to (I, J, K)."""
        prepared = prepare(self.spec, volume.array, volume.spacing, axis)
        parts = []
        for start in range(0, len(prepared.data), self.batch):
            probs = restore(prepared, self.probabilities(prepared.data[start : start + self.batch]))
            parts.append([found.cpu() for found in of(probs)])
        volumes = [torch.cat(items) for items in zip(*parts, strict=True)]
        flat = self.spec.spatial_dims == 2
        return [(items.movedim(0, axis) if flat else items[0]).contiguous().numpy() for items in volumes]


def scaled_entropy(probs: Tensor) -> Tensor:
    """(B, C, *S) -> (B, *S) uint8: the entropy of the classes, 255 for ln C."""
    scale = 255 / math.log(probs.shape[1])
    return (entropy_map(probs) * scale).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class _Items:
    """One image's share of a batch: which of its items, on which input."""

    image_id: str
    prepared: Prepared
    positions: Sequence[int]


class PoolViews:
    """Views of a pool's items by one network: every image is read and preprocessed once, ahead of the forward passes.

    Args:
        sources: one for each volume number of the pool.
        unreadable: told (image id, reason) of an image that could not be read; its rows are left out.
        done: told how many rows are finished after each image.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        pool: Pool,
        sources: Sequence[Source],
        *,
        unreadable: Callable[[str, str], None],
        done: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.segmenter, self.pool, self.sources = segmenter, pool, sources
        self._unreadable, self._done = unreadable, done

    def batches(self, rows: npt.NDArray[np.int64]) -> Iterator[Batch]:
        """Batches of at most the segmenter's size, each within one image, in pool order."""
        order = rows[np.argsort(self.pool.volume[rows], kind="stable")]
        groups = np.split(order, np.flatnonzero(np.diff(self.pool.volume[order])) + 1) if len(order) else []
        for group, prepared in ahead(self._read, groups):
            if prepared is not None:
                size = self.segmenter.batch if self._per_slice else len(group)
                for start in range(0, len(group), size):
                    part = group[start : start + size]
                    yield Batch(part, self._items(part, prepared))
            self._done(len(group))

    @property
    def _per_slice(self) -> bool:
        """Whether an item is one input of the network: a slice of a 2-D model."""
        return self.segmenter.spec.spatial_dims == 2 and self.pool.position[0] >= 0

    def _read(self, group: npt.NDArray[np.int64]) -> Prepared | None:
        source = self.sources[int(self.pool.volume[group[0]])]
        try:
            volume = source.volume()
            if (last := int(self.pool.position[group].max())) >= volume.array.shape[source.axis]:
                raise BadInput(f"The file changed: it has no slice {last} any more.")
            return prepare(self.segmenter.spec, volume.array, volume.spacing, source.axis)
        except BadInput as error:
            self._unreadable(source.image_id, str(error))
            return None

    def _items(self, rows: npt.NDArray[np.int64], prepared: Prepared) -> _Items:
        source = self.sources[int(self.pool.volume[rows[0]])]
        return _Items(source.image_id, prepared, self.pool.position[rows].tolist())

    def compute(self, batch: Batch, views: frozenset[View]) -> Mapping[View, Any]:
        """The asked views, of which `loop.views` says what they hold; maps of probabilities lie on the image's own grid.

        Raises:
            BadInput: the model lacks the layer that a view is about, the weights a head, or the ensemble a member.
        """
        items = batch.data
        assert isinstance(items, _Items)
        prepared, positions = items.prepared, items.positions
        if self._per_slice:
            first, last = positions[0], positions[-1]
            whole_run = positions == list(range(first, last + 1))
            return self._look(items, prepared.data[first : last + 1] if whole_run else prepared.data[positions], views)
        if self.segmenter.spec.spatial_dims == 3:
            return self._look(items, prepared.data, views, slices=None if positions[0] < 0 else positions)
        parts = prepared.data.split(self.segmenter.batch)
        return volume_of_slices([self._look(items, part, views, at) for at, part in enumerate(parts)])

    def _look(
        self,
        items: _Items,
        data: Tensor,
        views: frozenset[View],
        part: int = 0,
        slices: Sequence[int] | None = None,
    ) -> dict[View, Any]:
        data = data.to(self.segmenter.device, non_blocking=True)
        name = f"{items.image_id}/{items.positions}/{part}"
        return look(self.segmenter, Inputs(items.prepared, data, name, slices), views)
