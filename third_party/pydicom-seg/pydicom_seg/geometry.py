"""Where the planes of a series or of a SEG lie: one regular voxel grid, or a refusal.

All coordinates are DICOM's patient coordinates (LPS, millimetres). The axes of a grid are DICOM's too: along a row of
pixels, down the rows, and along the normal of the planes, which is also how ITK stacks a series.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset

from pydicom_seg.errors import UnsupportedSegmentation

# No voxel centre may lie farther than this part of a voxel from its place: enough for coordinates that were rounded in
# a header or stored as 32-bit floats, too little to reach the next plane or pixel.
TOLERANCE = 0.1
# Of unit vectors: direction cosines are often written with four or five decimals.
COSINE_TOLERANCE = 1e-3
# Of cosines and millimetres between two planes of one stack, where only the rounding differs.
SHARED_TOLERANCE = 1e-4
# A whole body at a fifth of a millimetre. Two planes of a broken header must not ask for all the memory between them.
MAX_PLANES = 10_000

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels; the columns of `direction` are its axes, as in ITK."""

    size: tuple[int, int, int]
    spacing: Floats
    origin: Floats
    direction: Floats

    @classmethod
    def of_image(cls, image: SimpleITK.Image) -> "Grid":
        """Reads the grid of a 3D image."""
        columns, rows, planes = image.GetSize()
        direction = np.array(image.GetDirection()).reshape(3, 3)
        return cls((columns, rows, planes), np.array(image.GetSpacing()), np.array(image.GetOrigin()), direction)

    def to_image(self, array: NDArray[np.unsignedinteger]) -> SimpleITK.Image:
        """Makes an image of an array of planes, rows and columns."""
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(self.spacing.tolist())
        image.SetOrigin(self.origin.tolist())
        image.SetDirection(self.direction.ravel().tolist())
        return image

    def positions(self, indices: Floats) -> Floats:
        """Gives the coordinates of voxel centres, one row each."""
        return self.origin + (indices * self.spacing) @ self.direction.T

    def indices(self, positions: Floats) -> Floats:
        """Gives the voxel indices of coordinates, one row each."""
        offsets = np.linalg.solve(self.direction, (positions - self.origin).T).T
        return np.asarray(offsets / self.spacing, dtype=np.float64)

    def __str__(self) -> str:
        """Says size, spacing and origin, for an error message."""
        return f"{self.size} voxels of {self.spacing.round(4).tolist()} mm at {self.origin.round(3).tolist()}"


@dataclass(frozen=True)
class Planes:
    """Parallel planes of pixels in any order, several of them perhaps in one place."""

    positions: Floats
    axes: Floats
    pixel_spacing: Floats

    @classmethod
    def read(
        cls, positions: Sequence[Dataset], orientations: Sequence[Dataset], measures: Sequence[Dataset]
    ) -> "Planes":
        """Reads the place of each plane from the three datasets that tell it."""
        return cls(
            np.stack([numbers(item, "ImagePositionPatient", 3) for item in positions]),
            unit_axes(shared_numbers(orientations, "ImageOrientationPatient", 6)),
            shared_numbers(measures, "PixelSpacing", 2),
        )

    @property
    def distances(self) -> Floats:
        """Gives the distance of each plane along the normal."""
        return np.asarray(self.positions @ self.axes[:, 2], dtype=np.float64)

    def stack(self, rows: int, columns: int, spacing: float) -> tuple[Grid, Indices]:
        """Finds the grid of the planes, and on which plane of it each of them lies."""
        indices = plane_indices(self.distances, spacing)
        last = int(indices.max())
        # A header rounds the spacing, and the error would add up over many planes: the positions are exact.
        exact = float(np.ptp(self.distances)) / last if last else spacing
        spacings = np.array([self.pixel_spacing[1], self.pixel_spacing[0], exact])
        grid = Grid((columns, rows, last + 1), spacings, self.positions[np.argmin(indices)], self.axes)
        refuse_sheared(grid, self.positions, indices)
        return grid, indices


def numbers(dataset: Dataset, keyword: str, count: int) -> Floats:
    """Reads an attribute of `count` finite numbers; a single zero, which some write for "unknown", counts as missing."""
    value = dataset.get(keyword)
    values = np.atleast_1d(np.array(value or [], dtype=np.float64))
    if values.size != count or not np.isfinite(values).all() or (keyword == "PixelSpacing" and values.min() <= 0):
        raise UnsupportedSegmentation(
            f"Every plane must tell its {keyword} as {count} usable numbers.",
            got=value,
            way_out="Use single-frame images, or a SEG, that lie in patient coordinates, and complete their headers.",
        )
    return values


def shared_numbers(datasets: Sequence[Dataset], keyword: str, count: int) -> Floats:
    """Reads an attribute that must be the same in all planes."""
    values = np.stack([numbers(dataset, keyword, count) for dataset in datasets])
    different = np.abs(values - values[0]).max(axis=1) > SHARED_TOLERANCE
    if different.any():
        raise UnsupportedSegmentation(
            f"All planes must have the same {keyword}.",
            got=f"{values[0].tolist()} and {values[np.argmax(different)].tolist()}",
            way_out="Split them into one series, or one SEG, for each value.",
        )
    first: Floats = values[0]
    return first


def unit_axes(orientation: Floats) -> Floats:
    """Turns the six cosines of ImageOrientationPatient into three exact axes, the third along the normal."""
    row, column = orientation[:3], orientation[3:]
    products = [row @ row, column @ column, row @ column]
    if not np.allclose(products, [1, 1, 0], rtol=0, atol=COSINE_TOLERANCE):
        raise UnsupportedSegmentation(
            "ImageOrientationPatient must hold two unit vectors at a right angle.",
            got=orientation.tolist(),
            way_out="Correct the header.",
        )
    row = row / np.linalg.norm(row)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return np.column_stack([row, np.cross(normal, row), normal])


def plane_indices(distances: Floats, spacing: float) -> Indices:
    """Counts how many planes of a grid each plane lies behind the first; planes may be missing or repeated."""
    order = np.argsort(distances, kind="stable")
    gaps = np.diff(distances[order]) / spacing
    steps = np.rint(gaps)
    if not np.all(np.abs(gaps - steps) <= TOLERANCE) or steps.sum() >= MAX_PLANES:
        raise UnsupportedSegmentation(
            f"Planes must lie whole multiples of {spacing:.6g} mm apart, on less than {MAX_PLANES} places.",
            got=f"{len(distances)} planes with gaps of {np.unique((gaps * spacing).round(4)).tolist()[:10]} mm",
            way_out="Resample to equally spaced planes, or correct SpacingBetweenSlices.",
        )
    indices = np.zeros(len(distances), dtype=np.intp)
    indices[order[1:]] = np.cumsum(steps)
    return indices


def refuse_sheared(grid: Grid, positions: Floats, indices: Indices) -> None:
    """Refuses planes that lie shifted against each other, as those of a tilted gantry do."""
    expected = np.column_stack([np.zeros((len(indices), 2)), indices])
    offset = np.abs(grid.indices(positions) - expected).max()
    if not offset <= TOLERANCE:
        raise UnsupportedSegmentation(
            "Planes must be stacked straight along their normal at equal distances.",
            got=f"a plane {offset:.3g} voxels from its place",
            way_out="Resample the series to a rectangular grid (a tilted gantry shears it).",
        )


def array_on_grid(image: SimpleITK.Image, target: Grid) -> NDArray[np.integer]:
    """Gives the voxels of an image as planes, rows and columns of `target`, which must be the same grid.

    The same grid may be stored along other axes: a NIfTI file is often flipped or transposed against its series.
    """
    grid = Grid.of_image(image)
    order = np.argmax(np.abs(grid.direction.T @ target.direction), axis=0)  # axis of the image along each target axis
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(target.size) - 1)
    found = grid.indices(target.positions(corners.astype(np.float64)))[:, order]
    ends = np.array(grid.size)[order] - 1
    flipped = found[0] > ends / 2
    offsets = np.abs(found - np.where(flipped, ends - corners, corners))
    if sorted(order) != [0, 1, 2] or not np.array_equal(ends + 1, target.size) or not np.all(offsets <= TOLERANCE):
        raise UnsupportedSegmentation(
            "The mask must lie on the voxel grid of the source images.",
            got=f"{grid} for source images of {target}",
            way_out="Resample the mask to the source images by nearest neighbour.",
        )
    array: NDArray[np.integer] = SimpleITK.GetArrayFromImage(image).T.transpose(order)
    return np.flip(array, tuple(np.flatnonzero(flipped).tolist())).T
