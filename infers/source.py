"""Where a pool's images are read from."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """The file of a pool's volume number."""

    image_id: str
    path: Path
    axis: int
