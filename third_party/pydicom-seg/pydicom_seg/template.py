"""The description of a SEG and its segments in the form of dcmqi's metainfo files."""

from collections.abc import Mapping
from typing import Any

from pydicom_seg.errors import UnsupportedSegmentation

MAX_LABEL = 255
ALGORITHM_TYPES = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")
CODE_KEYS = {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"}
SERIES_KEYS = {
    "@schema",
    "BodyPartExamined",
    "ClinicalTrialCoordinatingCenterName",
    "ClinicalTrialSeriesID",
    "ClinicalTrialTimePointID",
    "ContentCreatorName",
    "ContentDescription",
    "ContentLabel",
    "InstanceNumber",
    "SeriesDescription",
    "SeriesNumber",
    "segmentAttributes",
}
REQUIRED_KEYS = {
    "labelID",
    "SegmentLabel",
    "SegmentAlgorithmType",
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
}
OPTIONAL_KEYS = {"SegmentAlgorithmName", "SegmentDescription", "recommendedDisplayRGBValue"}


def from_dcmqi_metainfo(metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a metainfo and gives it back: everything in it can be written into a SEG."""
    check_keys("the metainfo", metainfo, {"segmentAttributes"}, SERIES_KEYS)
    groups = metainfo["segmentAttributes"]
    if len(groups) != 1 or not groups[0]:
        raise UnsupportedSegmentation(
            "segmentAttributes must be one list in a list, with a segment for each label value.",
            got=[len(group) for group in groups],
            way_out="Describe all segments of the one mask in the first inner list.",
        )
    for attributes in groups[0]:
        check_segment(attributes)
    check_labels([attributes["labelID"] for attributes in groups[0]])
    return dict(metainfo)


def check_segment(attributes: Mapping[str, Any]) -> None:
    """Refuses the description of a segment that could not be written in full."""
    name = f"the segment {attributes.get('SegmentLabel')!r}"
    check_keys(name, attributes, REQUIRED_KEYS, REQUIRED_KEYS | OPTIONAL_KEYS)
    check_text(name, "SegmentLabel", attributes["SegmentLabel"])
    for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
        check_keys(f"{keyword} of {name}", attributes[keyword], CODE_KEYS, CODE_KEYS)
        check_text(name, "CodeMeaning", attributes[keyword]["CodeMeaning"])
    algorithm = attributes["SegmentAlgorithmType"]
    if algorithm not in ALGORITHM_TYPES:
        raise UnsupportedSegmentation(
            f"SegmentAlgorithmType must be one of {', '.join(ALGORITHM_TYPES)}.", got=algorithm, way_out="Choose one."
        )
    if algorithm != "MANUAL":
        check_text(name, "SegmentAlgorithmName", attributes.get("SegmentAlgorithmName"))


def check_keys(name: str, mapping: Mapping[str, Any], required: set[str], known: set[str]) -> None:
    """Refuses a missing key, and one that would be lost without a word."""
    missing, unknown = required - mapping.keys(), mapping.keys() - known
    if missing or unknown:
        raise UnsupportedSegmentation(
            f"All that {name} tells must be known and written: {', '.join(sorted(known))}.",
            got=f"missing {sorted(missing)}, unknown {sorted(unknown)}",
            way_out="Add what is missing and leave out what is unknown.",
        )


def check_text(name: str, keyword: str, text: object) -> None:
    """Refuses what DICOM's short texts cannot hold."""
    if not isinstance(text, str) or not 0 < len(text) <= 64:
        raise UnsupportedSegmentation(
            f"{keyword} of {name} must be a text of 1 to 64 characters.", got=repr(text), way_out="Use a short name."
        )


def check_labels(labels: list[object]) -> None:
    """Refuses label values that are no segment numbers."""
    numbers = [label for label in labels if type(label) is int and 1 <= label <= MAX_LABEL]
    if len(set(numbers)) != len(labels):
        raise UnsupportedSegmentation(
            f"labelID must be a different whole number from 1 to {MAX_LABEL} for each segment.",
            got=labels,
            way_out="Renumber the labels from 1 upwards.",
        )
