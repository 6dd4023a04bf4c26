"""Views of a pool's items by a representation learner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infers.source import Source
from loop.errors import BadInput
from loop.pool import WHOLE, IntArray, Pool
from loop.read_ahead import ahead
from loop.signals import Batch
from loop.views import Embedding, View
from models.representation import Representation, slices_of


class EmbeddingViews:
    """Vectors of a pool's items; of a whole volume, the mean of its slices' vectors.

    Args:
        network: trained, in evaluation mode, on the device.
        batch: most slices in one forward pass.
        sources, unreadable, done: as of `infers.engine.PoolViews`.
    """

    def __init__(
        self,
        learner: Representation,
        network: nn.Module,
        pool: Pool,
        sources: Sequence[Source],
        *,
        device: torch.device,
        batch: int = 256,
        unreadable: Callable[[str, str], None],
        done: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.learner, self.network, self.pool, self.sources = learner, network, pool, sources
        self.device, self.batch, self._unreadable, self._done = device, batch, unreadable, done

    def slices(self, rows: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """(rows of one volume ascending, their slices (n, 1, h, w)); all slices of it for a whole volume."""
        order = rows[np.argsort(self.pool.volume[rows], kind="stable")]
        groups = np.split(order, np.flatnonzero(np.diff(self.pool.volume[order])) + 1) if len(order) else []
        for group, found in ahead(self._read, groups):
            if found is not None:
                yield group, found
            self._done(len(group))

    def _read(self, group: npt.NDArray[np.int64]) -> Tensor | None:
        source = self.sources[int(self.pool.volume[group[0]])]
        try:
            volume = source.volume()
            items = slices_of(volume.array, source.axis, self.learner.size)
            positions = self.pool.position[group]
            if int(positions.max()) >= len(items):
                raise BadInput(f"The file changed: it has no slice {int(positions.max())} any more.")
        except BadInput as error:
            self._unreadable(source.image_id, str(error))
            return None
        return items if positions[0] == WHOLE else items[torch.from_numpy(positions)]

    def batches(self, rows: IntArray) -> Iterator[Batch]:
        """One batch a volume."""
        for group, items in self.slices(rows):
            yield Batch(group, items)

    def compute(self, batch: Batch, views: frozenset[View]) -> Mapping[View, Any]:
        """The one view there is: Embedding, (B, D).

        Raises:
            ValueError: another view is asked for.
        """
        if views != {Embedding()}:
            raise ValueError(
                f"A representation learner has no view but Embedding, asked for {sorted(map(str, views))}."
            )
        items = batch.data
        assert isinstance(items, Tensor)
        with torch.inference_mode():
            found = torch.cat([self.network(part.to(self.device)).float() for part in items.split(self.batch)])
        whole = self.pool.position[batch.rows[0]] == WHOLE
        return {Embedding(): found.mean(0, keepdim=True) if whole else found}
