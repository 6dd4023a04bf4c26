"""The frames of a DICOM SEG: their pixels, one at a time, and the slice of the source each belongs to."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom.geometry import SeriesGeometry
from loop.errors import BadInput

READABLE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless)
"""Those of viewers and archives. The others of DICOM may decode to much more than the header says, or lose something."""

_OFF = 0.1
"""Of a voxel: rounded positions are off by less, and another slice by ten times as much."""
_TURNED = 1e-3
"""Difference of unit vectors' entries."""


def check_syntax(syntax: UID) -> None:
    """Raise BadInput unless frames in this transfer syntax can be read here."""
    if syntax not in READABLE:
        known = ", ".join(UID(one).name for one in READABLE)
        kind = "private " if syntax.is_private else ""
        raise BadInput(f"The DICOM SEG must be in one of {known}, got the {kind}transfer syntax {syntax.name[:100]}.")


def check_file(path: Path) -> None:
    """Raise BadInput unless a file is DICOM whose frames can be read here; a deflated one may be much larger than it looks."""
    try:
        syntax = UID(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    except Exception as error:  # noqa: BLE001 - an element may hold anything
        raise BadInput(f"The file must be a DICOM SEG, but cannot be read as DICOM: {str(error)[:200]}") from None
    check_syntax(syntax)


def check_length(seg: Dataset, frames: int) -> None:
    """Raise BadInput unless uncompressed pixels are as many as the header says."""
    if "PixelData" not in seg:
        raise BadInput(f"The DICOM SEG claims {frames} frames and has no pixels.")
    if seg.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    expected = (seg.Rows * seg.Columns * frames * seg.BitsAllocated + 7) // 8
    got = len(seg.PixelData)
    if got not in (expected, expected + expected % 2):
        raise BadInput(
            f"The DICOM SEG must have {expected} bytes of pixels ({frames} frames of {seg.Rows} x {seg.Columns}), got {got}."
        )


def frames_of(seg: Dataset, frames: int) -> Iterator[npt.NDArray[np.uint16]]:
    """Each frame (rows, columns), without the others in memory."""
    rows, columns = int(seg.Rows), int(seg.Columns)
    size = rows * columns
    if seg.file_meta.TransferSyntaxUID.is_encapsulated:
        count = 0
        for frame in iter_pixels(seg, raw=True):
            if frame.shape != (rows, columns):
                raise BadInput(f"The frames of the DICOM SEG must be {rows} x {columns}, got {frame.shape}.")
            count += 1
            if count > frames:
                raise BadInput(f"The DICOM SEG must have {frames} frames of pixels, got more.")
            yield frame.astype(np.uint16)
        if count < frames:
            raise BadInput(f"The DICOM SEG must have {frames} frames of pixels, got {count}.")
        return
    if seg.BitsAllocated == 1:
        packed = np.frombuffer(seg.PixelData, np.uint8)
        for index in range(frames):
            # Frames follow each other bit by bit: one that is no multiple of 8 pixels begins within a byte.
            first, last = index * size, (index + 1) * size
            bits = np.unpackbits(packed[first // 8 : (last + 7) // 8], bitorder="little")
            yield bits[first % 8 : first % 8 + size].reshape(rows, columns).astype(np.uint16)
        return
    words = np.frombuffer(seg.PixelData, "<u2" if seg.BitsAllocated == 16 else np.uint8, size * frames)
    for index in range(frames):
        yield words[index * size : (index + 1) * size].reshape(rows, columns).astype(np.uint16)


class Places:
    """Which slice (k) of the source a frame belongs to: by the instance it refers to, by its position, or by both.

    Args:
        shared: the functional groups that all frames share.
    """

    def __init__(self, geometry: SeriesGeometry, shared: Dataset) -> None:
        self._geometry, self._shared = geometry, shared
        self._by_source = {key: k for k, key in enumerate(zip(geometry.sop_uids, geometry.frame_numbers, strict=True))}
        self._known = set(geometry.sop_uids)
        self._inverse = np.linalg.inv(geometry.matrix)

    def slice_of(self, group: Dataset, name: str) -> int:
        """The slice of a frame.

        Args:
            group: the frame's functional groups. name: of the frame, for people.

        Raises:
            BadInput: it refers to an instance that is not of the series, lies elsewhere or is turned, or says neither.
        """
        self._check_plane(group, name)
        referred = self._referred(group, name)
        at = self._positioned(group, name)
        if at is None:
            if len(referred) != 1:
                raise BadInput(
                    f"{name} must refer to the one image it was drawn on, or have a position; got {len(referred)} references."
                )
            return referred.pop()
        if len(referred) == 1 and at not in referred:
            raise BadInput(f"{name} refers to the image of slice {referred.pop()}, but lies at slice {at}.")
        return at

    def _referred(self, group: Dataset, name: str) -> set[int]:
        found: set[int] = set()
        for derivation in group.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                uid = str(source.get("ReferencedSOPInstanceUID", ""))
                if uid not in self._known:
                    raise BadInput(f"{name} refers to the image {uid[:70]!r}, which is not in this series.")
                numbers = source.get("ReferencedFrameNumber")
                if (uid, 0) in self._by_source:
                    found.add(self._by_source[uid, 0])
                    continue
                # A multi-frame instance without a frame's number leaves it to the position.
                for number in [] if numbers is None else numbers if hasattr(numbers, "__iter__") else [numbers]:
                    if (uid, int(number)) not in self._by_source:
                        raise BadInput(f"{name} refers to frame {number} of {uid}, which is not there.")
                    found.add(self._by_source[uid, int(number)])
        return found

    def _positioned(self, group: Dataset, name: str) -> int | None:
        value = self._of("PlanePositionSequence", "ImagePositionPatient", group)
        if value is None:
            return None
        lps = _numbers(value, 3, f"{name} must have an ImagePositionPatient of three numbers, got {str(value)[:60]}.")
        voxel = (self._inverse @ [-lps[0], -lps[1], lps[2], 1])[:3]
        k = int(np.clip(np.rint(voxel[2]), 0, self._geometry.shape[2] - 1))
        off = voxel - [0, 0, k]
        if np.abs(off).max() > _OFF:
            raise BadInput(
                f"{name} must begin at a slice's first voxel, but lies at ({', '.join(f'{v:.2f}' for v in voxel)}) of "
                f"{self._geometry.shape} voxels."
            )
        return k

    def _check_plane(self, group: Dataset, name: str) -> None:
        """Raise BadInput unless the frame has the source's orientation and spacing, where it says any."""
        spacing = np.linalg.norm(self._geometry.matrix[:3, :3], axis=0)
        value = self._of("PlaneOrientationSequence", "ImageOrientationPatient", group)
        if value is not None:
            sentence = f"{name} must have the orientation of the series"
            found = _numbers(value, 6, f"{sentence}, got {str(value)[:100]}.")
            wanted = (np.diag([-1, -1, 1]) @ self._geometry.matrix[:3, :2] / spacing[:2]).T.ravel()
            if np.abs(found - wanted).max() > _TURNED:
                raise BadInput(f"{sentence} {wanted.round(4).tolist()}, got {found.round(4).tolist()}.")
        value = self._of("PixelMeasuresSequence", "PixelSpacing", group)
        if value is not None:
            sentence = f"{name} must have the PixelSpacing of the series"
            found = _numbers(value, 2, f"{sentence}, got {str(value)[:100]}.")
            if not np.allclose(found, spacing[[1, 0]], rtol=_TURNED):
                raise BadInput(f"{sentence} {spacing[[1, 0]].round(4).tolist()}, got {found.round(4).tolist()}.")

    def _of(self, sequence: str, keyword: str, group: Dataset) -> object:
        for place in (group, self._shared):
            for item in place.get(sequence) or []:
                if (value := item.get(keyword)) is not None and value != "":
                    return value
        return None


def _numbers(value: object, count: int, sentence: str) -> npt.NDArray[np.float64]:
    try:
        found = np.array([float(part) for part in value], np.float64)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise BadInput(sentence) from None
    if found.shape != (count,) or not np.isfinite(found).all():
        raise BadInput(sentence)
    return found
