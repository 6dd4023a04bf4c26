"""Predictions kept on disk for people to see, by weights and image version: no page waits for a model."""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datastore.volume_io import Affine, write_volume
from loop.durable import atomic

ByteArray = npt.NDArray[np.uint8]

_MASK, _UNCERTAINTY = "prediction.nii.gz", "uncertainty.nii.gz"


@dataclass(frozen=True)
class Section:
    """One slice, without the slice axis: its voxels, the predicted classes, and the uncertainty (255 is ln C)."""

    voxels: npt.NDArray[np.generic]
    mask: ByteArray
    uncertainty: ByteArray


@dataclass(frozen=True)
class Preview:
    """What one model says of one image.

    Attributes:
        digest: of the weights that predicted.
    """

    folder: Path
    digest: str

    @property
    def mask(self) -> Path:
        """The predicted classes of the whole volume, uint8."""
        return self.folder / _MASK

    @property
    def uncertainty(self) -> Path:
        """The entropy of each voxel's classes, uint8: 255 is ln C."""
        return self.folder / _UNCERTAINTY

    def section(self, index: int) -> Section | None:
        """A slice that was kept apart, so that the volume need not be read for it; None if it was not."""
        try:
            with np.load(self._section(index), allow_pickle=False) as kept:
                return Section(kept["voxels"], kept["mask"], kept["uncertainty"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def lacks(self, slices: Iterable[int]) -> list[int]:
        """Those of the slices that are not kept apart."""
        return [index for index in slices if not self._section(index).is_file()]

    def keep_section(self, index: int, section: Section) -> None:
        with atomic(self._section(index), ".npz", durable=False) as temporary:
            np.savez_compressed(temporary, voxels=section.voxels, mask=section.mask, uncertainty=section.uncertainty)

    def _section(self, index: int) -> Path:
        return self.folder / f"{index}.npz"


class Previews:
    """A folder for each model's digest, in it one for each image; deleting it only costs time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, image_id: str, version: str, digest: str) -> Preview | None:
        """What this very model says of the image, if it is there."""
        folder = self._folder(image_id, version, digest)
        return Preview(folder, digest) if folder.is_dir() else None

    def newest(self, image_id: str, version: str, digest: str | None) -> Preview | None:
        """As `of`, or what an earlier model said, which stands until the current one's is there."""
        if digest is not None and (found := self.of(image_id, version, digest)):
            return found
        others = (self.of(image_id, version, other.name) for other in self.folder.glob("[!.]*"))
        there = [(other.folder.stat().st_mtime, other) for other in others if other is not None]
        return max(there, key=lambda pair: pair[0])[1] if there else None

    def keep(
        self,
        image_id: str,
        version: str,
        digest: str,
        mask: ByteArray,
        uncertainty: ByteArray,
        affine: Affine,
        sections: Mapping[int, Section],
    ) -> None:
        """Both volumes, and some slices apart: all of it is there at once, or nothing."""
        target = self._folder(image_id, version, digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            made = Preview(beside, digest)
            write_volume(made.mask, mask, affine, durable=False)
            write_volume(made.uncertainty, uncertainty, affine, durable=False)
            for index, section in sections.items():
                made.keep_section(index, section)
            shutil.rmtree(target, ignore_errors=True)
            beside.chmod(0o755)
            beside.rename(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def keep_only(self, digest: str, wanted: Collection[tuple[str, str]], most: int) -> None:
        """Drop what other models said, what a killed job left, and of this one's the oldest beyond `most` that nobody wants.

        Args:
            wanted: (image id, version) of images that stay.
        """
        stay = {self._folder(image_id, version, digest) for image_id, version in wanted}
        own = self.folder / digest
        for folder in self.folder.glob("*"):
            if folder != own:
                shutil.rmtree(folder, ignore_errors=True)
        others = [folder for folder in own.glob("*") if folder not in stay]
        unfinished = [folder for folder in others if folder.name.startswith(".")]
        done = [folder for folder in others if not folder.name.startswith(".")]
        done.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in unfinished + done[max(0, most - len(stay)) :]:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, image_id: str, version: str, digest: str) -> Path:
        # An id may be longer than a folder's name, and its characters are the user's.
        return self.folder / digest / hashlib.sha256(f"{image_id}\0{version}".encode()).hexdigest()[:32]
