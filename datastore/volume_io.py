"""Volumes from and to files: NIfTI (nibabel), NRRD and MetaImage (SimpleITK), always as (i, j, k) voxels with a RAS affine."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from isal import igzip

from loop.durable import atomic
from loop.errors import BadInput

Affine = npt.NDArray[np.float64]

NIFTI = (".nii.gz", ".nii")
ITK = (".seg.nrrd", ".nrrd", ".mha")
SUFFIXES = NIFTI + ITK
"""What can be read and written; .mhd and .nhdr are left out because they name another file to read voxels from."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# A gzip level that is about five times faster than the default; masks compress well all the same.
_GZIP_LEVEL = 1
_VOXEL_BYTES = 8
"""Of the widest voxels that are read."""
_NIFTI_HEADER_BYTES = 540
"""Of the longer kind of header, NIfTI-2."""
_NIFTI_VOXELS_AT = 352
_HEAD_BYTES = 1 << 20
"""How much of a file is searched for names of other files; no header is longer."""


@dataclass(frozen=True)
class Header:
    """What is known of a volume without its voxels: shape in voxels and the (4, 4) affine to RAS mm."""

    shape: tuple[int, ...]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along i, j, k."""
        i, j, k = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k


@dataclass(frozen=True)
class Volume:
    """Voxels (I, J, K) and their (4, 4) affine to RAS mm."""

    array: npt.NDArray[Any]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        return Header(self.array.shape, self.affine).spacing


def is_here() -> None:
    """What fetches an image whose file is where it is read: nothing."""


def suffix_of(name: str) -> str:
    """The file type a name claims.

    Raises:
        BadInput: not one that can be read.
    """
    lowered = name.lower()
    for suffix in SUFFIXES:
        if lowered.endswith(suffix):
            return suffix
    raise BadInput(f"The file must be one of {', '.join(SUFFIXES)}, got {Path(name).name[:100]!r}.")


def read_header(path: Path) -> Header:
    """Shape and affine of a 3-D volume; no voxel is read.

    Raises:
        BadInput: not a readable image, not 3-D, or without usable geometry.
    """
    with _opened(path) as (header, _):
        return header


def read_volume(path: Path, fits: Callable[[Header], None] = lambda header: None) -> Volume:
    """Voxels and geometry, after the checks of `read_header`.

    Args:
        fits: looks at the header before voxels are read, and raises if they are not wanted.

    Raises:
        BadInput: as `read_header`; truncated; complex or colour voxels.
    """
    with _opened(path) as (header, voxels):
        fits(header)
        _check_size(path, header)
        with _explained(path):
            array = voxels()
    if array.dtype.kind not in "iufb":
        raise BadInput(f"{path.name} must hold real numbers, got {array.dtype}.")
    return Volume(array, header.affine)


def read_slice(path: Path, axis: int, index: int) -> npt.NDArray[Any]:
    """One slice of a volume, (I, J, K) without the slice axis; of an uncompressed NIfTI file no other voxel is read.

    Raises:
        BadInput: as `read_volume`; or there is no such slice.
    """
    header = read_header(path)
    if not 0 <= index < header.shape[axis]:
        raise BadInput(f"{path.name} has slices 0 to {header.shape[axis] - 1}, got {index}.")
    if suffix_of(path.name) != ".nii":
        plane: npt.NDArray[Any] = np.take(read_volume(path).array, index, axis)
        return plane
    with _explained(path), open(path, "rb") as file:
        proxy = nib.arrayproxy.ArrayProxy(file, _nifti_header(path, file), mmap=False)
        at = (slice(None),) * axis + (index,)
        array: npt.NDArray[Any] = np.asanyarray(proxy[at + (slice(None),) * (2 - axis) + (0,) * (len(proxy.shape) - 3)])
    if array.dtype.kind not in "iufb":
        raise BadInput(f"{path.name} must hold real numbers, got {array.dtype}.")
    return array


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Callable[[], npt.NDArray[Any]]]]:
    """The checked header, and what reads the voxels while the block runs."""
    with ExitStack() as files:
        with _explained(path):
            header, voxels = _open_nifti(path, files) if suffix_of(path.name) in NIFTI else _open_itk(path)
        if len(header.shape) != 3:
            raise BadInput(f"{path.name} must be a 3-D volume, got {len(header.shape)} dimensions {header.shape}.")
        if min(header.shape) < 1:
            raise BadInput(f"{path.name} must have voxels, got shape {header.shape}.")
        if not np.isfinite(header.affine).all() or abs(np.linalg.det(header.affine[:3, :3])) < 1e-9:
            raise BadInput(f"{path.name} has no usable geometry: its affine is singular or not finite.")
        yield header, voxels


def write_volume(path: Path, array: npt.NDArray[Any], affine: Affine, *, durable: bool = True) -> None:
    """Write atomically: whoever reads `path` sees the old file or the whole new one, also after a crash.

    Args:
        durable: see `atomic`.
    """
    suffix = suffix_of(path.name)
    with atomic(path, suffix, durable=durable) as temporary:
        if suffix in NIFTI:
            _write_nifti(temporary, array, affine)
        else:
            _write_itk(temporary, array, affine)


def _check_size(path: Path, header: Header) -> None:
    """A few compressed kilobytes can claim, and hold, more than the machine has; the system would end the server for it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if math.prod(header.shape) * _VOXEL_BYTES > memory / 2:
        raise BadInput(f"{path.name} claims more voxels {header.shape} than fit into half of this machine's memory.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except MemoryError:
        raise BadInput(f"{path.name} claims more voxels than fit into memory.") from None
    # nibabel, zlib and ITK raise whatever their parsers meet; all of it means that the file is not what it should be.
    except Exception as error:  # noqa: BLE001
        said = str(error).strip().replace(str(path), path.name)
        reason = said.splitlines()[-1][:200] if said else type(error).__name__
        raise BadInput(f"{path.name} could not be read as an image: {reason}") from None


def _open_nifti(path: Path, files: ExitStack) -> tuple[Header, Callable[[], npt.NDArray[Any]]]:
    # nibabel's header classes without its image classes, which guess the format and look for companion files first.
    file: Any = files.enter_context((igzip.open if path.name.lower().endswith(".gz") else open)(path, "rb"))
    nifti = _nifti_header(path, file)
    shape = tuple(int(n) for n in nifti.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    header = Header(shape, np.asarray(nifti.get_best_affine(), np.float64))

    def voxels() -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.asanyarray(nifti.data_from_fileobj(file)).reshape(shape)
        return array

    return header, voxels


def _nifti_header(path: Path, file: Any) -> Any:
    block = file.read(_NIFTI_HEADER_BYTES)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(block)), None)
    if kind is None:
        raise BadInput(f"{path.name} could not be read as an image: it does not begin as a NIfTI file does.")
    file.seek(0)
    return kind.from_fileobj(file)


def _open_itk(path: Path) -> tuple[Header, Callable[[], npt.NDArray[Any]]]:
    _refuse_outside_data(path)
    reader = _itk_reader(path)
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    if components != 1:
        raise BadInput(f"{path.name} must have one value a voxel, got {components} (overlapping segments or colour).")
    affine = np.eye(4)
    if reader.GetDimension() == 3:
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
    header = Header(tuple(reader.GetSize()), _LPS_TO_RAS @ affine)
    return header, lambda: sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)


def _itk_reader(path: Path) -> sitk.ImageFileReader:
    """Reads the format that the name claims and no other: ITK would go by the content, of HDF5 with its links for one."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if suffix_of(path.name) == ".mha" else "NrrdImageIO")
    reader.SetFileName(str(path))
    return reader


def _refuse_outside_data(path: Path) -> None:
    """A header that names another file would make us read that file's bytes as voxels."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if suffix_of(path.name) == ".mha":
        # The parser skips blanks and takes ":" for "=": whatever else mentions the field is refused with it.
        mentions = re.findall(rb"elementdatafile", head, re.IGNORECASE)
        if len(mentions) != 1 or not re.search(rb"(?:^|\n)ElementDataFile ?= ?LOCAL[ \t\r]*\n", head, re.IGNORECASE):
            raise BadInput(f"{path.name} must hold its own voxels (ElementDataFile = LOCAL, once).")
    # Lines may end in a lone carriage return.
    elif re.search(rb"[\r\n]data ?file:", head, re.IGNORECASE):
        raise BadInput(f"{path.name} must hold its own voxels, its header names another data file.")
    elif len(head) == _HEAD_BYTES and b"\n\n" not in head and b"\r\n\r\n" not in head:
        raise BadInput(f"{path.name} must have a header of less than {_HEAD_BYTES} bytes.")


def _write_nifti(path: Path, array: npt.NDArray[Any], affine: Affine) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    header.set_data_offset(_NIFTI_VOXELS_AT)
    head = header.binaryblock.ljust(_NIFTI_VOXELS_AT, b"\0")
    data = head + array.tobytes("F")
    if path.name.endswith(".gz"):
        data = igzip.compress(data, _GZIP_LEVEL, mtime=0)
    path.write_bytes(data)


def _write_itk(path: Path, array: npt.NDArray[Any], affine: Affine) -> None:
    lps = _LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
