"""What a DICOM SEG says of itself before its pixels are looked at: on what it was drawn, by whom, and by what."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom.archive import is_uid
from dicom.seg_frames import check_file
from dicom.seg_reader import SEG_CLASSES
from dicom.seg_writer import MODEL_NAME
from loop.errors import BadInput

_LONGEST_NAME = 200


@dataclass(frozen=True)
class SegHead:
    """Of a DICOM SEG.

    Attributes:
        series_uids: of the series it refers to.
        sop_uids: of the images it refers to.
        creator: who made it, as a name is written; "" where it does not say.
        ours: this software made it. automatic: every segment is an algorithm's, with nobody's hand in it.
    """

    sop_uid: str
    study_uid: str
    series_uids: frozenset[str]
    sop_uids: frozenset[str]
    creator: str
    ours: bool
    automatic: bool


def read_head(path: Path) -> SegHead:
    """The head of a DICOM SEG's file. Raises BadInput if it is none, or damaged."""
    try:
        check_file(path)
        return _head(pydicom.dcmread(path, stop_before_pixels=True))
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001 - an element may hold anything
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"The DICOM SEG is damaged: {said[:200]}") from None


def _head(seg: Dataset) -> SegHead:
    kind = str(seg.get("SOPClassUID", ""))
    if kind not in SEG_CLASSES:
        raise BadInput(f"It is no DICOM SEG, but {UID(kind).name[:100] or 'something without SOPClassUID'}.")
    series = list(seg.get("ReferencedSeriesSequence") or [])
    types = [str(one.get("SegmentAlgorithmType", "")) for one in seg.get("SegmentSequence") or []]
    return SegHead(
        str(seg.get("SOPInstanceUID", "")),
        str(seg.get("StudyInstanceUID", "")),
        frozenset(uid for one in series if is_uid(uid := str(one.get("SeriesInstanceUID", "")))),
        frozenset(uid for uid in _referred(seg, series) if is_uid(uid)),
        _name(seg.get("ContentCreatorName")) or _name(seg.get("OperatorsName")),
        str(seg.get("ManufacturerModelName", "")) == MODEL_NAME,
        bool(types) and set(types) == {"AUTOMATIC"},
    )


def _referred(seg: Dataset, series: list[Dataset]) -> Iterator[str]:
    for one in series:
        for instance in one.get("ReferencedInstanceSequence") or []:
            yield str(instance.get("ReferencedSOPInstanceUID", ""))
    for group in seg.get("PerFrameFunctionalGroupsSequence") or []:
        for derivation in group.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                yield str(source.get("ReferencedSOPInstanceUID", ""))


def _name(value: object) -> str:
    """A person's name as DICOM has it, Doe^Jane, as it is written: Doe Jane."""
    written = " ".join(str(value or "").partition("=")[0].replace("^", " ").split())
    return "".join(character for character in written if character.isprintable())[:_LONGEST_NAME]
