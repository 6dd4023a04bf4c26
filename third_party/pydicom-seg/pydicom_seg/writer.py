"""A mask becomes a DICOM SEG: BINARY, one segment for each label value, a frame for every plane of the series."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import SimpleITK
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DS

from pydicom_seg.errors import UnsupportedSegmentation
from pydicom_seg.geometry import Grid, Indices, Planes, array_on_grid
from pydicom_seg.template import from_dcmqi_metainfo

# Attributes that every image must have but may leave empty, and that highdicom reads without asking.
EMPTY_IF_MISSING = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
SAME_IN_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
FROM_TEMPLATE = (
    "BodyPartExamined",
    "ClinicalTrialCoordinatingCenterName",
    "ClinicalTrialSeriesID",
    "ClinicalTrialTimePointID",
    "ContentCreatorName",
)


class MultiClassWriter:
    """Writes SEGs in which the segment number is the label value."""

    def __init__(
        self,
        template: Mapping[str, Any],
        inplane_cropping: bool = False,
        skip_empty_slices: bool = False,
        skip_missing_segment: bool = False,
    ) -> None:
        """Takes the description of the segments; the options are there to be refused, as they lose planes or labels."""
        if inplane_cropping or skip_empty_slices or skip_missing_segment:
            raise UnsupportedSegmentation(
                "inplane_cropping, skip_empty_slices and skip_missing_segment must be False.",
                got=(inplane_cropping, skip_empty_slices, skip_missing_segment),
                way_out="Write the whole mask: an empty plane costs one bit for a voxel.",
            )
        self._template = from_dcmqi_metainfo(template)

    def write(self, segmentation: SimpleITK.Image, source_images: Sequence[Dataset]) -> Segmentation:
        """Writes a mask that lies on the voxel grid of a series, whose images may come in any order."""
        refuse_other_masks(segmentation)
        refuse_other_sources(source_images)
        grid, indices = series_grid(source_images, segmentation)
        array = array_on_grid(segmentation, grid)
        segments = describe_segments(self._template["segmentAttributes"][0])
        refuse_undescribed(array, {attributes["labelID"] for attributes in self._template["segmentAttributes"][0]})
        sources = [header(source_images[index], float(grid.spacing[2])) for index in np.argsort(indices)]
        dataset = write_seg(array.astype(np.uint8), sources, segments, self._template)
        for keyword in FROM_TEMPLATE:
            if self._template.get(keyword) and not dataset.get(keyword):
                setattr(dataset, keyword, self._template[keyword])
        return dataset


def refuse_other_masks(mask: SimpleITK.Image) -> None:
    """Refuses what is no volume of whole numbers, one for a voxel."""
    if (
        mask.GetDimension() != 3
        or mask.GetNumberOfComponentsPerPixel() != 1
        or "integer" not in mask.GetPixelIDTypeAsString()
    ):
        raise UnsupportedSegmentation(
            "The mask must be a 3D image of one whole number for a voxel.",
            got=f"{mask.GetDimension()}D, {mask.GetPixelIDTypeAsString()}",
            way_out="Write one SEG for each volume, and cast probabilities to labels first.",
        )


def refuse_other_sources(sources: Sequence[Dataset]) -> None:
    """Refuses images that are not one series of single frames of one size."""
    values = {keyword: {source.get(keyword) for source in sources} for keyword in SAME_IN_SERIES}
    different = [keyword for keyword, found in values.items() if len(found) != 1 or None in found]
    frames = sum("NumberOfFrames" in source for source in sources)
    if different or frames:
        raise UnsupportedSegmentation(
            f"The source images must be single frames with the same {', '.join(SAME_IN_SERIES)}.",
            got=f"{len(sources)} images, {frames} of them multi-frame, with missing or different {different}",
            way_out="Give the images of one series, and complete their headers.",
        )


def series_grid(sources: Sequence[Dataset], mask: SimpleITK.Image) -> tuple[Grid, Indices]:
    """Finds the voxel grid of a series, and the plane of each image on it."""
    planes = Planes.read(sources, sources, sources)
    gaps = np.diff(np.unique(planes.distances.round(4)))
    # One plane has no distance to a neighbour; that of the mask is as good, and is what comes back when the SEG is read.
    spacing = float(np.median(gaps)) if gaps.size else spacing_along(mask, planes.axes[:, 2])
    grid, indices = planes.stack(sources[0].Rows, sources[0].Columns, spacing)
    if not np.array_equal(np.sort(indices), np.arange(grid.size[2])):
        raise UnsupportedSegmentation(
            "The series must have one image for each plane of its volume.",
            got=f"{len(sources)} images for {grid.size[2]} planes, {len(set(indices.tolist()))} of them with an image",
            way_out="Complete the series, and split it by time point or echo.",
        )
    return grid, indices


def spacing_along(image: SimpleITK.Image, normal: NDArray[np.float64]) -> float:
    """Gives the spacing of an image along the axis nearest to a direction."""
    grid = Grid.of_image(image)
    return float(grid.spacing[np.argmax(np.abs(grid.direction.T @ normal))])


def refuse_undescribed(array: NDArray[np.integer], described: set[int]) -> None:
    """Refuses label values that the template does not describe, those above 255 among them."""
    strangers = sorted(set(np.unique(array).tolist()) - described - {0})
    if strangers:
        raise UnsupportedSegmentation(
            "Every label value of the mask must be described by a segment of the template, from 1 to 255.",
            got=f"{strangers} where {sorted(described)} are described",
            way_out="Renumber the labels, or describe them in segmentAttributes.",
        )


def describe_segments(segments: Sequence[Mapping[str, Any]]) -> list[SegmentDescription]:
    """Describes a segment for every number up to the greatest label value.

    Segment numbers must run from 1 without a gap, and a label must keep its value: a value that the template leaves out
    gets an empty segment.
    """
    described = {attributes["labelID"]: describe_segment(attributes) for attributes in segments}
    numbers = range(1, max(described) + 1)
    return [described.get(number) or empty_segment(number) for number in numbers]


def describe_segment(attributes: Mapping[str, Any]) -> SegmentDescription:
    """Describes a segment as the template does."""
    color = attributes.get("recommendedDisplayRGBValue")
    description = SegmentDescription(
        segment_number=attributes["labelID"],
        segment_label=attributes["SegmentLabel"],
        segmented_property_category=code(attributes["SegmentedPropertyCategoryCodeSequence"]),
        segmented_property_type=code(attributes["SegmentedPropertyTypeCodeSequence"]),
        algorithm_type="MANUAL",
        display_color=CIELabColor.from_rgb(*color) if color else None,
    )
    # Set afterwards, because highdicom asks for family and version of an algorithm, which a template does not tell.
    for keyword in ("SegmentAlgorithmType", "SegmentAlgorithmName", "SegmentDescription"):
        if attributes.get(keyword):
            setattr(description, keyword, attributes[keyword])
    return description


def empty_segment(number: int) -> SegmentDescription:
    """Describes a segment that has no voxels."""
    background = codes.DCM.Background
    return SegmentDescription(number, f"unused {number}", background, background, "MANUAL")


def code(item: Mapping[str, str]) -> Code:
    """Reads a coded term."""
    return Code(item["CodeValue"], item["CodingSchemeDesignator"], item["CodeMeaning"])


def header(source: Dataset, spacing: float) -> Dataset:
    """Copies an image without its pixels, and completes it for highdicom: the caller's dataset stays as it is."""
    copy = Dataset()
    for element in source:
        if element.keyword != "PixelData":
            copy.add(element)
    for keyword in EMPTY_IF_MISSING:
        copy.setdefault(keyword, "")
    # highdicom copies these two into the SEG, and in many series the first is missing or holds the gap between slices.
    copy.SpacingBetweenSlices = DS(spacing, auto_format=True)
    copy.SliceThickness = source.get("SliceThickness") or copy.SpacingBetweenSlices
    return copy


def write_seg(
    array: NDArray[np.uint8],
    sources: Sequence[Dataset],
    segments: Sequence[SegmentDescription],
    template: Mapping[str, Any],
) -> Segmentation:
    """Makes the SEG of an array of planes, rows and columns, each plane in the place of its source image."""
    return Segmentation(
        source_images=sources,
        pixel_array=array,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=int(template.get("SeriesNumber") or 300),
        sop_instance_uid=generate_uid(),
        instance_number=int(template.get("InstanceNumber") or 1),
        manufacturer="NextSlice",
        manufacturer_model_name="pydicom-seg",
        software_versions=version("pydicom-seg"),
        device_serial_number="0",
        omit_empty_frames=False,
        specific_character_set="ISO_IR 192",
        content_label=template.get("ContentLabel") or None,
        content_description=template.get("ContentDescription") or None,
        series_description=template.get("SeriesDescription") or None,
    )
