"""Whose volumes a campaign uses: a pool that is annotated bit by bit, and patients held aside on whom every model is measured."""

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datastore.volume_io import SUFFIXES, Header, read_header, suffix_of
from loop.catalogue import Found
from loop.config import AppConfig
from loop.errors import BadInput


@dataclass(frozen=True)
class Study:
    """Images with ground truth.

    Attributes:
        images, masks: folders; a mask has its image's name.
        scribbles: folder of scribbles that answer in the masks' place, or None; models are measured on masks always.
        pool, test: image ids, ascending.
        patients: {image id: patient}.
        files: {image id: (image, mask)}, inside those folders, where ids are no names of files in them; else empty.
    """

    images: Path
    masks: Path
    scribbles: Path | None
    pool: tuple[str, ...]
    test: tuple[str, ...]
    patients: Mapping[str, str]
    files: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: Path,
        masks: Path,
        config: AppConfig,
        *,
        scribbles: Path | None = None,
        test_share: float = 0.25,
        split_seed: int = 0,
        most_pool: int = 0,
        most_test: int = 0,
    ) -> "Study":
        """Split the patients, the same for every strategy and seed.

        Args:
            most_pool, most_test: at most so many volumes; 0 is all there are.

        Raises:
            BadInput: no images, an image without a mask, or too few patients.
        """
        ids = sorted(_named(images))
        if not ids:
            raise BadInput(f"There is no image ({', '.join(SUFFIXES)}) in {str(images)!r}.")
        for folder in (masks, *([scribbles] if scribbles else [])):
            lacking = sorted(set(ids) - set(_named(folder)))
            if lacking:
                raise BadInput(
                    f"{len(lacking)} of {len(ids)} images have no file in {str(folder)!r}, such as {lacking[0]!r}: a campaign "
                    "needs the truth of all. Give it a folder with the annotated images only."
                )
        patients = {image_id: config.patient_of(image_id) for image_id in ids}
        pool, test = _split(ids, patients, test_share, split_seed)
        return cls(
            images.resolve(), masks.resolve(), scribbles.resolve() if scribbles else None,
            tuple(sorted(pool[: most_pool or None])), tuple(sorted(test[: most_test or None])), patients,
        )  # fmt: skip

    @classmethod
    def of_files(
        cls,
        images: Path,
        masks: Path,
        files: Mapping[str, tuple[Path, Path]],
        patients: Mapping[str, str],
        *,
        test_share: float = 0.25,
        split_seed: int = 0,
    ) -> "Study":
        """As `of`, for files that are named one by one.

        Args:
            files: {image id: (image, mask)}, inside the two folders.

        Raises:
            BadInput: too few patients.
        """
        pool, test = _split(sorted(files), patients, test_share, split_seed)
        return cls(
            images.resolve(), masks.resolve(), None, tuple(sorted(pool)), tuple(sorted(test)), patients, files
        )  # fmt: skip

    @cached_property
    def _files(self) -> Mapping[Path, Mapping[str, Path]]:
        folders = [self.images, self.masks, *([self.scribbles] if self.scribbles else [])]
        return {folder: _named(folder) for folder in folders}

    def image(self, image_id: str) -> Path:
        return self.files[image_id][0] if self.files else self._files[self.images][image_id]

    def mask(self, image_id: str) -> Path:
        return self.files[image_id][1] if self.files else self._files[self.masks][image_id]

    def answer(self, image_id: str) -> Path:
        """What the annotator draws: the scribbles, or else the mask."""
        return self._files[self.scribbles][image_id] if self.scribbles else self.mask(image_id)

    def header(self, image_id: str) -> Header:
        return read_header(self.image(image_id))

    def found(self) -> list[Found]:
        """The pool as the catalogue takes it in."""
        return [self._found(image_id) for image_id in self.pool]

    def _found(self, image_id: str) -> Found:
        path, header = self.image(image_id), self.header(image_id)
        i, j, k = header.shape
        return Found(
            image_id, str(path.relative_to(self.images)), str(path.stat().st_size),
            (i, j, k), header.spacing, header.affine.tolist(),
        )  # fmt: skip

    def digest(self) -> str:
        """Of the files' names and sizes and of who is in the pool: another study's results must not be mixed in."""
        told = hashlib.sha256()
        for kind, ids in (("pool", self.pool), ("test", self.test)):
            for image_id in ids:
                sizes = [
                    os.stat(path).st_size for path in (self.image(image_id), self.mask(image_id), self.answer(image_id))
                ]
                told.update(f"{kind} {image_id} {sizes}\n".encode())
        return told.hexdigest()[:16]

    def slices(self, config: AppConfig) -> int:
        """How many the pool has."""
        headers = map(self.header, self.pool)
        return sum(header.shape[config.axis_of(header.spacing)] for header in headers)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": str(self.images), "masks": str(self.masks), "scribbles": str(self.scribbles or ""),
            "pool_volumes": len(self.pool), "test_volumes": len(self.test),
            "test_patients": len({self.patients[image_id] for image_id in self.test}), "data": self.digest(),
        }  # fmt: skip


def _split(
    ids: Sequence[str], patients: Mapping[str, str], test_share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Pool and test: image ids in the patients' drawn order."""
    everybody = sorted(set(patients.values()))
    random.Random(seed).shuffle(everybody)
    count = max(1, round(test_share * len(everybody)))
    if count >= len(everybody):
        raise BadInput(f"A campaign needs two patients at least, one to be measured on; there are {len(everybody)}.")
    aside = set(everybody[:count])
    # In the patients' drawn order, so that a smaller campaign uses a part of what a larger one does.
    drawn = sorted(ids, key=lambda image_id: (everybody.index(patients[image_id]), image_id))
    pool = [image_id for image_id in drawn if patients[image_id] not in aside]
    test = [image_id for image_id in drawn if patients[image_id] in aside]
    return pool, test


def _named(folder: Path) -> dict[str, Path]:
    """{id: file}; the id is the file's name without its suffix."""
    if not folder.is_dir():
        raise BadInput(f"{str(folder)!r} is not a folder.")
    files = [
        path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")
    ]
    return {path.name[: -len(suffix_of(path.name))]: path for path in files}
