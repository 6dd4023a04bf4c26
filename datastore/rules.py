"""What an image id, a label's tag and a list of slices must be, and how a label's notes are named."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from datastore.volume_io import suffix_of
from loop.errors import BadInput

FINAL, ORIGINAL = "final", "original"
TAGS = (FINAL, ORIGINAL)
SEG_SUFFIX = ".dcm"

_ID_LENGTH = 200


def check_id(image_id: str) -> None:
    """Raise BadInput unless the id names a file inside a folder: relative, no `..`, nothing hidden, no control characters."""
    parts = image_id.split("/")
    rule = "An image id must be a relative path of visible names"
    if not image_id or len(image_id) > _ID_LENGTH:
        raise BadInput(f"{rule} of 1 to {_ID_LENGTH} characters, got {len(image_id)}.")
    if max(len(os.fsencode(part)) for part in parts) > _ID_LENGTH:
        raise BadInput(f"{rule} of at most {_ID_LENGTH} bytes each, got {image_id[:100]!r}.")
    if any(part.startswith(".") or not part.strip() for part in parts) or "\\" in image_id or ":" in parts[0][1:2]:
        raise BadInput(f"{rule}, without `..` and backslashes, got {image_id[:100]!r}.")
    if any(unicodedata.category(character).startswith("C") for character in image_id):
        raise BadInput(f"{rule}, without control characters, got {image_id[:100]!r}.")


def check_tag(tag: str) -> None:
    """Raise BadInput unless the tag is one of ours."""
    if tag not in TAGS:
        raise BadInput(f"A label's tag must be one of {', '.join(TAGS)}, got {tag[:100]!r}.")


def check_slices(slices: Sequence[Any], n_slices: int) -> list[int]:
    """The annotated slices a client names, ascending.

    Raises:
        BadInput: not whole numbers from 0 to n_slices - 1, or none.
    """
    if not slices:
        raise BadInput(
            "annotated_slices must name at least one slice; leave it out for the slices the ticket asked for."
        )
    for index in slices:
        if type(index) is not int or not 0 <= index < n_slices:
            raise BadInput(f"annotated_slices must be whole numbers from 0 to {n_slices - 1}, got {str(index)[:40]!r}.")
    return sorted(set(slices))


def label_suffix(name: str) -> str:
    """The file type of a label: a volume's, or a DICOM SEG's; raises BadInput for another."""
    return SEG_SUFFIX if name.lower().endswith(SEG_SUFFIX) else suffix_of(name)


def label_info(params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    info = params.get("label_info") or []
    if not isinstance(info, list):
        raise BadInput(f"label_info must be a list, got {type(info).__name__}.")
    return info


def label_key(tag: str) -> str:
    return f"label:{tag}"
