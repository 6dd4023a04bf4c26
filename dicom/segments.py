"""What a segment is called, coded and coloured in DICOM, and which of our labels a segment of others is."""

import colorsys
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from loop.errors import BadInput

LONGEST_LABEL = 64
"""Characters of a segment's label in DICOM."""

_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_LESION = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_TISSUE = Code("85756007", "SCT", "Tissue")
_UNNAMED = re.compile(r"(segment|label|class|structure)?[ _-]*\d*")
_NO_LABELS = frozenset({"background", "annotate here"})
_GOLDEN = 0.618033988749895


def concepts(label: str) -> tuple[Code, Code]:
    """(category, type) of a label's segment: that of the structure where DICOM's own lists have it by this name, else tissue."""
    keyword = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", label))
    for category, known in ((_LESION, codes.cid7194), (_ANATOMY, codes.cid7192)):
        # "Background" is in these lists, and no label.
        if keyword and keyword != "Background" and keyword in known.dir(keyword):
            return category, getattr(known, keyword)
    return _TISSUE, _TISSUE


def colour(number: int) -> tuple[int, int, int]:
    """Red, green, blue (0 to 255) of a segment from 1: far from the colours of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb((number - 1) * _GOLDEN % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def match(segments: Mapping[int, str], painted: Iterable[int], values: Mapping[str, int]) -> list[dict[str, Any]]:
    """Our label of each painted segment, as a viewer's {"name", "idx"} pairs; segments that are no labels are left out.

    A name is compared without case, spaces, hyphens and underscores. A segment without a name of its own ("Segment 2")
    is the label of its number.

    Args:
        segments: {segment number: its label}. values: {name: voxel value}, ours.

    Raises:
        BadInput: a painted segment is none of our labels, is not described, or two are the same one.
    """
    ours = {_plain(name[:LONGEST_LABEL]): name for name in values}
    by_number = {value: name for name, value in values.items()}
    known = ", ".join(values)
    found: dict[str, int] = {}
    for number in sorted(set(painted)):
        if number not in segments:
            raise BadInput(
                f"The DICOM SEG must describe its segments, got voxels of segment {number} without a description."
            )
        said = _plain(segments[number])
        name = ours.get(said)
        if name is None and said in _NO_LABELS:
            continue
        if name is None and _UNNAMED.fullmatch(said):
            name = by_number.get(number)
        if name is None:
            raise BadInput(
                f"The DICOM SEG must have segments named as the labels ({known}), got segment {number} named "
                f"{segments[number][:100]!r}."
            )
        if name in found:
            raise BadInput(
                f"The DICOM SEG must have one segment of each label, got {found[name]} and {number} of {name!r}."
            )
        found[name] = number
    return [{"name": name, "idx": number} for name, number in found.items()]


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()
