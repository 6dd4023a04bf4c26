"""Where a pool's images are read from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datastore.volume_io import Volume, is_here, read_volume


@dataclass(frozen=True)
class Source:
    """The file of a pool's volume number.

    Attributes:
        fetch: brings the file there, if it comes from elsewhere and is not there.
    """

    image_id: str
    path: Path
    axis: int
    fetch: Callable[[], object] = is_here

    def volume(self) -> Volume:
        """Its voxels; raises as `fetch` and `read_volume`."""
        self.fetch()
        return read_volume(self.path)
