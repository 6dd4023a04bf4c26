"""Series whose pixels are compressed, stored as they are in a real archive: read here, or given uncompressed by the archive."""

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from bench.dicom_phantom import Study, uid, write_series
from datastore.archive import ArchiveDatastore
from datastore.volume_io import read_volume
from dicom.archive import Archive
from dicom.images import ArchiveImages
from loop.config import AppConfig
from loop.errors import Conflict
from loop.rounds import Loop
from loop.store import Store

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (20, 16, 5)
_OFFSET = 1 << 15
_SIGN_OF_SIZ = 40
"""Where a JPEG 2000 stream says in how many bits its samples are, and, in the highest bit, that they have a sign."""

Change = Callable[[Path], None]


def with_dcmtk(program: str, *options: str) -> Change:
    def change(file: Path) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"{program} (Debian: dcmtk) is not installed")
        subprocess.run([program, *options, str(file), str(file)], check=True, capture_output=True)

    return change


def unsigned(bits: int) -> Change:
    """What the lossy processes take: whole numbers without a sign."""

    def change(file: Path) -> None:
        instance = pydicom.dcmread(file)
        kind = np.uint8 if bits == 8 else np.uint16
        instance.PixelData = instance.pixel_array.astype(kind).tobytes()
        instance.BitsAllocated, instance.BitsStored, instance.HighBit = np.iinfo(kind).bits, bits, bits - 1
        instance.PixelRepresentation = 0
        instance.save_as(file)

    return change


def jpeg_2000(file: Path) -> None:
    """By Pillow, which writes no signs: the values are shifted, and the stream then says that they have one."""
    instance = pydicom.dcmread(file)
    shifted = (instance.pixel_array.astype(np.int32) + _OFFSET).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(shifted).save(out, format="JPEG2000", irreversible=False, no_jp2=True)
    stream = bytearray(out.getvalue())
    size_of = stream.index(b"\xff\x51")
    stream[size_of + _SIGN_OF_SIZ] |= 0x80
    instance.PixelData = encapsulate([bytes(stream)])
    instance["PixelData"].is_undefined_length = True
    instance.file_meta.TransferSyntaxUID = JPEG2000Lossless
    instance.save_as(file)


def run_length(file: Path) -> None:
    instance = pydicom.dcmread(file)
    instance.compress(RLELossless, generate_instance_uid=False)
    instance.save_as(file)


def both(*changes: Change) -> Change:
    return lambda file: [change(file) for change in changes] and None


EXACT: dict[str, Change] = {
    "jpeg-lossless": with_dcmtk("dcmcjpeg", "+e1", "+un"),
    "jpeg-lossless-any-prediction": with_dcmtk("dcmcjpeg", "+el", "+un"),
    "jpeg-ls": with_dcmtk("dcmcjpls", "+el", "+un"),
    "jpeg-2000": jpeg_2000,
    "rle": run_length,
    "deflated": with_dcmtk("dcmconv", "+td"),
    "big-endian": with_dcmtk("dcmconv", "+tb"),
}
LOSSY: dict[str, Change] = {
    "jpeg-baseline": both(unsigned(8), with_dcmtk("dcmcjpeg", "+eb", "+q", "95", "+rm", "+un")),
    "jpeg-extended-12-bit": both(unsigned(12), with_dcmtk("dcmcjpeg", "+ee", "+q", "95", "+rm", "+un")),
    "jpeg-ls-near": both(unsigned(12), with_dcmtk("dcmcjpls", "+en", "+md", "2", "+un")),
}


@pytest.fixture
def fetched(archive: Any, tmp_path: Path) -> Iterator[Callable[[str, npt.NDArray[Any], Change], Path]]:
    """The volume that is made of a series after each of its files was changed."""
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    client = Archive(archive.url, pauses=())

    def fetch(patient: str, array: npt.NDArray[Any], change: Change) -> Path:
        files = write_series(tmp_path / patient, array, AFFINE, Study(patient))
        before = pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID
        for file in files:
            change(file)
        assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID != before
        archive.upload(tmp_path / patient)
        loop = Loop(store, AppConfig(axis="2", archive_conditions=f"PatientID={patient}"))
        images = ArchiveImages(client, tmp_path / "archive", loop, 1 << 30)
        datastore = ArchiveDatastore(images, tmp_path, loop)
        datastore.refresh()
        return datastore.image_path(uid(patient, "study", "series"))

    yield fetch
    client.close()
    store.close()


def smooth(highest: int) -> npt.NDArray[np.int16]:
    """What lossy compression keeps."""
    i, j, k = np.indices(SHAPE)
    wave = 0.5 + 0.25 * np.sin(i / 4) + 0.2 * np.cos(j / 3 + k)
    return np.rint(highest * wave).astype(np.int16)


@pytest.mark.parametrize("name", EXACT)
def test_a_losslessly_compressed_series_is_equal_to_what_was_compressed(
    fetched: Callable[..., Path], name: str
) -> None:
    array = np.random.default_rng(0).integers(-2000, 3000, SHAPE).astype(np.int16)
    volume = read_volume(fetched(f"exact-{name}", array, EXACT[name]))
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.affine, AFFINE)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossily_compressed_series_is_what_the_compression_left(fetched: Callable[..., Path], name: str) -> None:
    array = smooth(200 if name == "jpeg-baseline" else 3000)
    volume = read_volume(fetched(f"lossy-{name}", array, LOSSY[name]))
    assert np.abs(volume.array.astype(int) - array).max() < 0.03 * array.max()


def test_pixels_that_nobody_decodes_are_refused_by_name(fetched: Callable[..., Path]) -> None:
    def damaged(file: Path) -> None:
        instance = pydicom.dcmread(file)
        instance.PixelData = encapsulate([b"\xff\x4f\xff\x51nonsense\xff\xd9"])
        instance["PixelData"].is_undefined_length = True
        instance.file_meta.TransferSyntaxUID = JPEG2000Lossless
        instance.save_as(file)

    with pytest.raises(Conflict, match=r"JPEG 2000 .*could not be decoded"):
        fetched("compressed-damaged", np.zeros(SHAPE, np.int16), damaged)
