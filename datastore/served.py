"""MONAI Label's Datastore over our images and annotations: what its endpoints, tasks and viewers call."""

import json
import time
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from sqlalchemy.engine import RowMapping

from datastore.annotations import Annotations
from datastore.rules import FINAL, ORIGINAL, TAGS, label_key
from datastore.volume_io import suffix_of
from loop.config import DATASET_FILE
from loop.errors import BadInput, Conflict, Forbidden
from loop.rounds import Loop


class ServedDatastore(Annotations, Datastore):
    """What folder and archive have in common.

    Args:
        root: the folder that the images' paths are relative to.
        labels: folder of the composite masks.
        name, description: shown to people.
    """

    def __init__(
        self,
        root: Path,
        labels: Path,
        state: Path,
        loop: Loop,
        clock: Callable[[], float],
        *,
        name: str,
        description: str,
    ) -> None:
        super().__init__(labels, state, loop, clock)
        self.root, self._name, self._description = root, name, description

    # --- images

    @abstractmethod
    def refresh(self) -> None:
        """Take in what changed where the images come from."""

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """The image's file."""

    def readable_path(self, image_id: str) -> Path:
        """As `image_path`, for reading its voxels; raises Conflict with the reason if they cannot be."""
        return self._readable(self.loop.catalogue.image(image_id))

    def _readable(self, image: RowMapping) -> Path:
        check_usable(image)
        return self._path(image)

    @abstractmethod
    def _path(self, image: RowMapping) -> Path:
        """The file of an image that is on record."""

    def source(self) -> dict[str, Any] | None:
        """How what the images come from is doing, for people; None where there is nothing to tell."""
        return None

    def viewer_facts(self, image: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
        """What viewers are told of an image that they are asked to annotate, beside the ticket."""
        return {}

    def remove_image(self, image_id: str) -> None:
        """Never: images are the user's.

        Raises:
            NotFound: no such image. Forbidden: otherwise.
        """
        self.loop.catalogue.image(image_id)
        raise Forbidden(
            f"The image {image_id!r} was not deleted: images are never changed here. Remove the file yourself."
        )

    def get_image(self, image_id: str, params: Any = None) -> bytes:
        return self.image_path(image_id).read_bytes()

    def get_image_uri(self, image_id: str) -> str:
        return str(self.image_path(image_id))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return dict(self.loop.catalogue.image(image_id)["info"])

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        taken = [key for key in info if key in map(label_key, TAGS)]
        if taken:
            raise BadInput(f"{taken[0]!r} is where the notes about that label are kept: PUT /datastore/label/info.")
        self.loop.catalogue.update_info(image_id, info)

    def list_images(self) -> list[str]:
        return sorted(self.loop.catalogue.versions())

    # --- labels

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]) -> str:
        """MONAI Label's way to `submit`, for its batch inference."""
        tag = label_tag.value if isinstance(label_tag, DefaultLabelTag) else label_tag
        self.submit(image_id, Path(label_filename), tag=tag, params=label_info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Never: a label may be a person's work.

        Raises:
            NotFound: no such label. Forbidden: otherwise.
        """
        self.label_file(label_id, label_tag)
        raise Forbidden(
            f"The label of {label_id!r} was not deleted: labels are kept. Submit the slices again to correct them."
        )

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> bytes:
        return self.label_file(label_id, label_tag).read_bytes()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.label_file(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        image = self.loop.catalogue.image(image_id)
        tags = ([FINAL] if image["n_labeled"] else []) + ([ORIGINAL] if image["submission"] else [])
        return dict.fromkeys(tags, image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What viewers need to read the mask: {"params": {"label_names": {name: value}}}, and what was written to it."""
        self.label_file(label_id, label_tag)
        info = self.loop.catalogue.image(label_id)["info"].get(label_key(label_tag), {})
        return {**info, "params": {**info.get("params", {}), "label_names": self._names(label_tag)}}

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        if not isinstance(info.get("params", {}), dict):
            raise BadInput(f"params must be a JSON object, got {type(info['params']).__name__}.")
        self.label_file(label_id, label_tag)
        self.loop.catalogue.update_info(label_id, {label_key(label_tag): info})

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return self.loop.catalogue.ids(labeled=True)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return self.loop.catalogue.ids(labeled=False)

    # --- the whole

    def name(self) -> str:
        return self._name

    def set_name(self, name: str) -> None:
        self._name = name

    def description(self) -> str:
        return self._description

    def set_description(self, description: str) -> None:
        self._description = description

    def datalist(self) -> list[dict[str, Any]]:
        """Image and composite mask of every image with annotated slices, and which slices those are."""
        return [
            {
                "image": str(self.root / row["path"]),
                "label": str(self.label_file(row["id"], FINAL)),
                "annotated_slices": row["slices"],
                "axis": row["axis"],
            }
            for row in self.loop.submitted.labeled_images()
        ]

    def status(self) -> dict[str, Any]:
        counts = self.loop.catalogue.counts()
        return {
            "total": counts["images"],
            "completed": counts["labeled_images"],
            "label_tags": {FINAL: counts["labeled_images"]},
            "train": [],
            **{key: counts[key] for key in ("slices", "labeled_slices", "unreadable_images")},
        }

    def json(self) -> dict[str, Any]:
        """Every image with its labels, in the form Slicer reads: the order of label_names is that of the values."""
        objects, infos = {}, {tag: {"params": {"label_names": self._names(tag)}} for tag in TAGS}
        for row in self.loop.catalogue.listing():
            tags = ([FINAL] if row["n_labeled"] else []) + ([ORIGINAL] if row["submission"] else [])
            objects[row["id"]] = {
                "image": {"ext": suffix_of(row["path"]), "info": row["info"]},
                "labels": {tag: {"ext": ".nii.gz", "info": infos[tag]} for tag in tags},
            }
        return {"name": self._name, "description": self._description, "objects": objects}

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP with the annotated images, their composite masks, and which slices are annotated; removed by the caller."""
        self.settle()
        target = self.state / "incoming" / f"dataset-{time.time_ns()}.zip"
        rows = self.loop.submitted.labeled_images()[: limit_cases or None]
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for row in rows:
                archive.write(self.readable_path(row["id"]), row["path"])
                archive.write(self.label_file(row["id"], FINAL), f"labels/final/{row['id']}.nii.gz")
            annotated = {row["id"]: {"slices": row["slices"], "axis": row["axis"]} for row in rows}
            archive.writestr("annotated_slices.json", json.dumps(annotated))
            archive.writestr(DATASET_FILE, json.dumps({"labels": list(self.loop.config.labels)}))
        return str(target)


def check_usable(image: RowMapping) -> None:
    """Raise Conflict with the reason if an image cannot be used."""
    if image["error"]:
        raise Conflict(f"The image {image['id']!r} cannot be used: {image['error']}")
