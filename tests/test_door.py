"""At the door: whatever comes in is refused with a reason, or harms nobody; nothing outside the folders is ever touched.

`NEXTSLICE_DOOR_STOCK=1 pytest tests/test_door.py` starts stock MONAI Label instead of ours and expects every test to fail
there, except those marked `stock_is_right_too`; with `--runxfail` it shows how each fails.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import nibabel as nib
import numpy as np
import psutil
import pytest

from bench.phantom import write_phantoms
from datastore.folder import FolderDatastore
from loop.config import AppConfig
from loop.errors import BadInput
from loop.rounds import Loop
from loop.store import Store

STOCK = bool(os.environ.get("NEXTSLICE_DOOR_STOCK"))
STOCK_APP = Path(__file__).parent / "stock_app"

PATIENTS = 6
VICTIM = "patient001"
"""Attacked by every bad label, and never labelled by a good one."""
NOTED, SAVED = "patient005", "patient006"

UPLOAD_MB = 2
SETTINGS = {
    "epochs": "1", "steps_per_epoch": "2", "batch_size": "2", "retrain": "false", "budget": "100",
    "slices_per_ticket": "1", "max_upload_mb": str(UPLOAD_MB), "rescan_seconds": "1",
}  # fmt: skip

BOOKS = {"store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "datastore_v2.json", "server.log"}
"""Written at any time for good reasons. What they say is asked over HTTP."""
SCRATCH = re.compile(r"/(signals|models|model|logs|__pycache__|pymp-[^/]*)(/|$)")

JSON = {"Content-Type": "application/json"}
UNDER_WAY = ("SUBMITTED", "RUNNING")


@dataclass
class Door:
    """A server, with files around its folders that nobody may touch.

    Attributes:
        base: holds everything: demo/ with the studies, outside/ with what is to be left alone, tmp/ for temporary files.
        filing: a label was taken, whose files the server writes when it is quiet.
    """

    server: Any
    base: Path
    http: httpx.Client = field(init=False)
    filing: bool = False
    model: str = "segmentation" if STOCK else "unet2d"
    strategy: str = "first" if STOCK else "spread"

    def __post_init__(self) -> None:
        # A connection for each request: a server that failed closes its own.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.server.url, timeout=120, limits=limits)

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    @property
    def volume(self) -> bytes:
        """The victim's own file."""
        return Path(self.server.images / f"{VICTIM}.nii.gz").read_bytes()

    @property
    def mask(self) -> bytes:
        """A good label of the victim."""
        return self.truth(VICTIM)

    def truth(self, image: str) -> bytes:
        return Path(self.server.truth / f"{image}.nii.gz").read_bytes()

    # --- requests

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.http.request(method, path, **request)

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.call("GET", path, params=query)

    def delete(self, path: str, **query: Any) -> httpx.Response:
        return self.call("DELETE", path, params=query)

    def post(self, path: str, body: bytes | dict[str, Any] | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return self.call("POST", path, content=content, headers=JSON)

    def put_image(
        self, data: bytes | None = None, name: str = "new.nii.gz", path: str = "/datastore/image", **query: str
    ) -> httpx.Response:
        return self.call("PUT", path, params=query, files={"file": (name, self.volume if data is None else data)})

    def put_label(
        self, data: bytes | None = None, name: str = "label.nii.gz", params: Any = None, **query: str
    ) -> httpx.Response:
        text = params if isinstance(params, str) else json.dumps(params or {})
        files = {"label": (name, self.mask if data is None else data)}
        query = {"image": VICTIM, **query}
        answer = self.call("PUT", "/datastore/label", params=query, data={"params": text}, files=files)
        self.filing |= answer.is_success
        return answer

    def put_note(self, text: str, image: str = NOTED) -> httpx.Response:
        return self.call("PUT", "/datastore/image/info", params={"image": image}, data={"info": text})

    def put_session(self, data: bytes, name: str = "archive", uncompress: bool = True) -> httpx.Response:
        return self.call("PUT", "/session/", params={"uncompress": uncompress}, files={"files": (name, data)})

    def put_model(self, model: str) -> httpx.Response:
        return self.call("PUT", f"/model/{model}", files={"file": ("model.pt", pickle.dumps(print))})

    def infer(self, params: dict[str, Any] | None = None, **query: str) -> httpx.Response:
        return self.call("POST", f"/infer/{self.model}", params=query, data={"params": json.dumps(params or {})})

    def next_sample(self, strategy: str = "random", /, **body: Any) -> httpx.Response:
        return self.post(f"/activelearning/{strategy}", body)

    def foreign_ticket(self) -> str:
        """An open ticket for another image than the victim."""
        while True:
            answer = self.next_sample()
            assert answer.status_code == 200, answer.text
            sample = answer.json()
            if sample["id"] != VICTIM:
                return str(sample.get("ask", {}).get("ticket"))

    # --- what must not change

    def tree(self, *, studies: bool = True) -> dict[str, str]:
        """{path: digest} of every file, link and folder, but for the server's books."""
        found = {}
        for path in sorted(self.base.rglob("*")):
            name = f"/{path.relative_to(self.base)}"
            if path.name in BOOKS or SCRATCH.search(name) or (not studies and path.is_relative_to(self.server.images)):
                continue
            if path.is_symlink():
                found[name] = f"to {os.readlink(path)}"
            elif path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[name] = "folder"
        return found

    def labels(self) -> dict[str, list[str]]:
        """{image: tags of its labels}, as the viewers see it."""
        answer = self.get("/datastore/", output="all")
        assert answer.status_code == 200, "one bad record breaks the list for everybody"
        return {image: sorted(facts["labels"]) for image, facts in answer.json()["objects"].items()}

    def state(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        return self.tree(), self.labels()

    def rest(self) -> None:
        """Wait until the server has filed what was sent before."""
        seen: dict[str, str] = {}
        while self.filing:
            time.sleep(1)
            before, seen = seen, self.tree()
            self.filing = before != seen

    def training(self) -> str:
        """The newest training's status."""
        return str(self.get("/train/").json()["status"])

    def settle(self) -> None:
        """Stop every training, those in the queue too."""
        while any(job["status"] in UNDER_WAY for job in as_list(self.get("/train/", all=True))):
            self.delete("/train/")
            time.sleep(0.1)

    def renew(self) -> None:
        """Undo what an attack did to stock, so that the next test meets it as the first one did."""
        self.settle()
        for name in ("demo/images", "outside", "tmp"):
            shutil.rmtree(self.base / name)
            shutil.copytree(self.base.with_name("pristine") / name, self.base / name, symlinks=True)
        assert self.call("POST", "/reload").status_code == 200
        assert self.get("/info/").status_code == 200


def wait_until(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.1)


def as_list(answer: httpx.Response) -> list[dict[str, Any]]:
    """The answer's list; none where there is nothing yet."""
    return list(answer.json()) if answer.status_code == 200 else []


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, live_server: type) -> Iterator[Door]:
    """One server for all tests of this module: no attack may change anything that the next one would notice."""
    base = tmp_path_factory.mktemp("door")
    write_phantoms(base / "demo", patients=PATIENTS, seed=1, shape=(48, 48, 20))
    images = base / "demo" / "images"
    for name in ("outside", "tmp"):
        (base / name).mkdir()
    shutil.copy(images / f"{VICTIM}.nii.gz", base / "outside" / "planted.nii.gz")
    (base / "outside" / "raw").write_bytes(b"secret " * 20_000)
    (images / "link.nii.gz").symlink_to(base / "outside" / "planted.nii.gz")
    (images / "way_out").symlink_to(base / "outside")
    environment = {"TMPDIR": str(base / "tmp")}
    if STOCK:
        shutil.copytree(base, base.with_name("pristine"), symlinks=True)
        shutil.copytree(STOCK_APP, base / "app")
        environment["MONAI_LABEL_DATASTORE_AUTO_RELOAD"] = "false"  # else it writes its old state over the renewed one
    server = live_server(base / "demo", SETTINGS, command=stock_command if STOCK else None, env=environment)
    try:
        found = Door(server.start(), base)
        wait_until(lambda: len(found.labels()) >= PATIENTS, "the images")
        yield found
        found.http.close()
    finally:
        server.stop()


def stock_command(server: Any) -> list[str]:
    """Stock in a folder of its own, because it writes into the app's."""
    start = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(server.root.parent / "app")]
    return [*start, "--studies", str(server.images), "--host", "127.0.0.1", "--port", str(server.port)]


@pytest.fixture(autouse=True)
def _stock_fails(request: pytest.FixtureRequest, door: Door) -> None:
    """With stock in our place every test must fail, unless it says otherwise."""
    if not STOCK:
        return
    door.renew()
    if not request.node.get_closest_marker("stock_is_right_too"):
        failures = (AssertionError, httpx.TransportError)
        request.applymarker(pytest.mark.xfail(reason="stock", strict=True, raises=failures))


stock_is_right_too = pytest.mark.stock_is_right_too


def refused(name: str, status: int, says: str, attack: Callable[[Door], httpx.Response], *, stock: bool = False) -> Any:
    """One row of a table of attacks. stock: whether stock refuses it just as well."""
    return pytest.param(attack, status, says, id=name, marks=[stock_is_right_too] if stock else [])


def reason(answer: httpx.Response) -> str:
    """What the answer's `detail` says: a sentence, or FastAPI's list of what is wrong where."""
    detail = answer.json()["detail"]
    if isinstance(detail, list):
        return "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in detail)
    return str(detail)


def expect_refusal(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    """The right 4xx with the reason, nothing touched anywhere, and a server that goes on."""
    door.rest()
    before = door.state()
    answer = attack(door)
    assert answer.status_code == status, answer.text[:500]
    told = reason(answer)
    assert re.search(says, told, re.IGNORECASE), told
    assert len(told.split()) > 1
    assert len(told) < 2000
    assert str(door.server.images) not in told, "where the server keeps its files is its own affair"
    assert door.state() == before
    assert door.get("/info/").status_code == 200


# --- what attackers send


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    """A .nii.gz."""
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes(), 1)


def opened(data: bytes) -> nib.Nifti1Image:
    """The inverse of `nifti`."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(data))


def bad_label(
    change: Callable[[np.ndarray], np.ndarray] = lambda mask: mask,
    move: Callable[[np.ndarray], np.ndarray] = lambda affine: affine,
) -> Callable[[Door], httpx.Response]:
    """The victim's good label with other voxels or another affine."""

    def send(door: Door) -> httpx.Response:
        good = opened(door.mask)
        array = np.asanyarray(good.dataobj)
        return door.put_label(nifti(change(array), move(good.affine.copy())))

    return send


def with_params(**params: Any) -> Callable[[Door], httpx.Response]:
    """The victim's good label, and what is said about it."""
    return lambda door: door.put_label(params=params)


def with_voxel(value: float, kind: type) -> Callable[[np.ndarray], np.ndarray]:
    def change(mask: np.ndarray) -> np.ndarray:
        mask = mask.astype(kind)
        mask[3, 3, 3] = value
        return mask

    return change


def claiming(shape: tuple[int, int, int], itemsize: int = 1) -> bytes:
    """A small .nii.gz whose header claims a shape."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1), {1: np.uint8, 8: np.float64}[itemsize]), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + bytes(1000))


def bomb(side: int) -> bytes:
    """A whole .nii.gz of side^3 zeros, a thousandth of their size."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(gzip.decompress(claiming((side,) * 3))[:352])
        for _ in range(side):
            file.write(bytes(side**2))
    return packed.getvalue()


def without_geometry(mask: bytes) -> bytes:
    """The same voxels, with an affine of zeros."""
    image = opened(mask)
    for row in ("srow_x", "srow_y", "srow_z"):
        image.header[row] = 0
    header = image.header.binaryblock
    return gzip.compress(header + gzip.decompress(mask)[len(header) :])


def meta_image(data_file: str, comment: str = "") -> bytes:
    """A MetaImage of 8 x 8 x 8 voxels that are in another file."""
    fields = f"""ObjectType = Image
NDims = 3
BinaryData = True
{comment}DimSize = 8 8 8
ElementType = MET_UCHAR
ElementDataFile = {data_file}
"""
    return fields.encode()


def nrrd(line: str) -> bytes:
    """An NRRD of 8 x 8 x 8 voxels with one more line in its header."""
    fields = f"""NRRD0004
type: uint8
dimension: 3
sizes: 8 8 8
space: left-posterior-superior
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
encoding: raw
{line}
"""
    return fields.encode() + bytes(513)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def member(name: str, link: str = "", kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    if link:
        found.type, found.linkname = kind, link
    return found


def zipped(name: str, data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return packed.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The archive with its only member marked as encrypted."""
    central = archive.rfind(b"PK\x01\x02")
    flagged = bytearray(archive)
    flagged[6] |= 1
    flagged[central + 8] |= 1
    return bytes(flagged)


def in_chunks(door: Door, method: str, path: str, **contents: Any) -> httpx.Response:
    """A request that does not tell how long it is."""
    request = door.http.build_request(method, path, **contents)
    body, kind = request.read(), request.headers["Content-Type"]
    parts = (body[start : start + 65536] for start in range(0, len(body), 65536))
    return door.call(method, path, content=parts, headers={"Content-Type": kind})


TOO_LARGE = bytes((UPLOAD_MB << 20) + 1000)
JUST_A_FORM = {"Content-Type": "multipart/form-data; boundary=x"}
DEEP = "[" * 200_000 + "]" * 200_000
QUITE_DEEP = '{"note": ' + "[" * 500 + "]" * 500 + "}"

NAMES_AND_PLACES = [
    refused(
        "image id leaves", 400, "without `..`", lambda d: d.put_image(path="/datastore/", image="../../outside/new")
    ),
    refused("image id leaves later", 400, "without `..`", lambda d: d.put_image(image="a/../../../outside/new")),
    refused("image id absolute", 400, "relative path", lambda d: d.put_image(image=f"{d.outside}/new")),
    refused(
        "image is a program", 400, r"one of .nii.gz", lambda d: d.put_image(b"x", "main.py", image=f"{d.outside}/x")
    ),
    refused("image id of Windows", 400, "backslashes", lambda d: d.put_image(image="..\\new")),
    refused("image id with a drive", 400, "relative path", lambda d: d.put_image(image="C:/new")),
    refused("image id hidden", 400, "visible", lambda d: d.put_image(image=".new")),
    refused("image id empty", 400, "1 to 200 characters", lambda d: d.put_image(name=".nii.gz")),
    refused("image id of 201 characters", 400, "1 to 200 characters", lambda d: d.put_image(image="x" * 201)),
    refused("image id of 400 bytes", 400, "200 bytes", lambda d: d.put_image(image="ü" * 200)),
    refused("image id with a line feed", 400, "control characters", lambda d: d.put_image(image="a\nb")),
    refused("image id with a zero", 400, "control characters", lambda d: d.put_image(image="a\0b")),
    refused("image id among labels", 400, "not for images", lambda d: d.put_image(image="labels/final/new")),
    refused("image id in our state", 400, "visible", lambda d: d.put_image(image=".nextslice/new")),
    refused("image id through a link", 400, "leaves the studies", lambda d: d.put_image(image="way_out/new")),
    refused("image id below a file", 409, "takes a file", lambda d: d.put_image(image=f"{VICTIM}.nii.gz/new")),
    refused("image is there", 409, "never overwritten", lambda d: d.put_image(image=VICTIM)),
    refused("image is there by name", 409, "never overwritten", lambda d: d.put_image(name=f"{VICTIM}.nii.gz")),
    refused(
        "image is there, other type",
        409,
        "never overwritten",
        lambda d: d.put_image(gzip.decompress(d.volume), "new.nii", image=VICTIM),
    ),
    refused(
        "image id ends as a type", 400, "file type", lambda d: d.put_image(nrrd(""), "n.nrrd", image=f"{VICTIM}.seg")
    ),
    refused("image is text", 400, "could not be read", lambda d: d.put_image(b"hello", image="new")),
    refused("image claims 30000^3", 400, "more voxels", lambda d: d.put_image(claiming((30_000,) * 3), image="new")),
    refused(
        "image claims 64 GiB",
        400,
        "more voxels|truncated|could not",
        lambda d: d.put_image(claiming((2048,) * 3, 8), image="new"),
    ),
    refused(
        "image of another file",
        400,
        "its own voxels",
        lambda d: d.put_image(nrrd(f"data file: {d.outside}/raw"), "n.nrrd", image="new"),
    ),
    refused("image by link, download", 403, "link that leaves", lambda d: d.get("/datastore/image", image="link")),
    refused("image by link, inference", 409, "link that leaves", lambda d: d.infer(image="link")),
    refused("image by link, label", 409, "link that leaves", lambda d: d.put_label(image="link")),
    refused("delete outside", 404, "no image", lambda d: d.delete("/datastore/", id="../../outside/planted")),
    refused("delete absolute", 404, "no image", lambda d: d.delete("/datastore/image", id=f"{d.outside}/planted")),
    refused("delete an image", 403, "never changed", lambda d: d.delete("/datastore/image", id=VICTIM)),
    refused("delete an unknown image", 404, "no image", lambda d: d.delete("/datastore/", id="nosuch")),
    refused(
        "delete a label outside",
        404,
        "no image",
        lambda d: d.delete("/datastore/label", id="../../outside/planted", tag="final"),
    ),
    refused(
        "read outside",
        404,
        "no image|not found",
        lambda d: d.get("/datastore/image", image="../../outside/planted"),
        stock=True,
    ),
    refused(
        "read absolute",
        404,
        "no image|not found",
        lambda d: d.get("/datastore/image", image=f"{d.outside}/raw"),
        stock=True,
    ),
    refused(
        "read a label outside",
        404,
        "no image|not found",
        lambda d: d.get("/datastore/label", label="../../outside/planted", tag="final"),
        stock=True,
    ),
    refused(
        "read by a tag", 400, "one of final, original", lambda d: d.get("/datastore/label", label=VICTIM, tag="../..")
    ),
    refused(
        "read beside the static files", 404, "not found", lambda d: d.get("/static/..%2f..%2fconfig.py"), stock=True
    ),
    refused("infer an absolute path", 404, "no image", lambda d: d.infer(image=f"{d.outside}/planted.nii.gz")),
    refused("infer a relative path", 404, "no image", lambda d: d.infer(image="../../outside/planted")),
    refused("infer nothing", 400, "Name an image", lambda d: d.infer()),
    refused("infer a session outside", 404, "no session", lambda d: d.infer(session_id="../../outside")),
    refused(
        "infer to a path",
        400,
        "result_extension",
        lambda d: d.infer({"result_extension": "/../../outside/new.nii.gz"}, image=VICTIM),
    ),
    refused("label tag leaves", 400, "one of final, original", lambda d: d.put_label(tag="../../../outside")),
    refused("label tag absolute", 400, "one of final, original", lambda d: d.put_label(tag=str(d.outside))),
    refused("label of an image outside", 404, "no image", lambda d: d.put_label(image="../../outside/planted")),
    refused("label of an unknown image", 404, "no image 'nosuch'", lambda d: d.put_label(image="nosuch")),
    refused("label is a program", 400, r"one of .nii.gz.*'l\.sh'", lambda d: d.put_label(name="l.sh")),
]

LABELS = [
    refused("of another shape", 400, r"shape.*got \(5, 5, 5\)", bad_label(lambda mask: mask[:5, :5, :5])),
    refused("moved 500 mm", 400, "500 mm away", bad_label(move=lambda affine: affine + np.eye(4, k=3) * 500)),
    refused("scaled 3x", 400, "mm away", bad_label(move=lambda affine: affine @ np.diag([3, 3, 3, 1]))),
    refused("mirrored", 400, "mm away", bad_label(move=lambda affine: affine @ np.diag([-1, 1, 1, 1]))),
    refused("without geometry", 400, "affine", lambda d: d.put_label(without_geometry(d.mask))),
    refused("of 0.37", 400, "whole numbers, got 0.37", bad_label(with_voxel(0.37, np.float32))),
    refused("of NaN", 400, "whole numbers, got NaN", bad_label(with_voxel(np.nan, np.float32))),
    refused("of infinity", 400, "infinite", bad_label(with_voxel(np.inf, np.float64))),
    refused("negative", 400, "negative, got -1", bad_label(with_voxel(-1, np.int16))),
    refused("of an unknown class", 400, "got the value 250", bad_label(with_voxel(250, np.uint8))),
    refused("4-D", 400, "3-D volume, got 4", bad_label(lambda mask: np.stack([mask, mask], -1))),
    refused("2-D", 400, "3-D volume, got 2", bad_label(lambda mask: mask[..., 0])),
    refused("complex", 400, "real numbers", bad_label(lambda mask: mask.astype(np.complex64))),
    refused("truncated", 400, "could not be read", lambda d: d.put_label(d.mask[: len(d.mask) // 2])),
    refused(
        "truncated, not packed",
        400,
        "could not be read",
        lambda d: d.put_label(gzip.decompress(d.mask)[:5000], "l.nii"),
    ),
    refused("empty", 400, "could not be read", lambda d: d.put_label(b"")),
    refused("text", 400, "could not be read", lambda d: d.put_label(b"hello")),
    refused("a picture", 400, "could not be read", lambda d: d.put_label(b"\x89PNG\r\n\x1a\n" + bytes(100))),
    refused("claiming 30000^3", 400, "shape", lambda d: d.put_label(claiming((30_000,) * 3))),
    refused(
        "claiming 30000^3 as NRRD",
        400,
        "shape",
        lambda d: d.put_label(nrrd("").replace(b"8 8 8", b"30000 30000 30000"), "l.nrrd"),
    ),
    refused("a bomb", 400, "shape", lambda d: d.put_label(bomb(800))),
    refused(
        "NRRD of another file",
        400,
        "its own voxels",
        lambda d: d.put_label(nrrd(f"data file: {d.outside}/raw"), "l.nrrd"),
    ),
    refused(
        "NRRD of another file, late",
        400,
        "its own voxels",
        lambda d: d.put_label(nrrd("# c\n" * 20_000 + f"datafile: {d.outside}/raw"), "l.nrrd"),
    ),
    refused(
        "NRRD of another file, by carriage return",
        400,
        "its own voxels",
        lambda d: d.put_label(nrrd(f"# c\rData File: {d.outside}/raw"), "l.nrrd"),
    ),
    refused(
        "MetaImage of /etc/passwd", 400, "its own voxels", lambda d: d.put_label(meta_image("/etc/passwd"), "l.mha")
    ),
    refused(
        "MetaImage of another file, with a colon",
        400,
        "its own voxels",
        lambda d: d.put_label(meta_image("LOCAL", f"ElementDataFile: {d.outside}/raw\n"), "l.mha"),
    ),
    refused(
        "MetaImage of a list",
        400,
        "its own voxels",
        lambda d: d.put_label(meta_image(f"LIST\n{d.outside}/raw"), "l.mha"),
    ),
    refused(".mhd", 400, r"one of .nii.gz", lambda d: d.put_label(meta_image(f"{d.outside}/raw"), "l.mhd")),
    refused(".nhdr", 400, r"one of .nii.gz", lambda d: d.put_label(nrrd(f"data file: {d.outside}/raw"), "l.nhdr")),
    refused(
        "not there",
        422,
        "label: Field required",
        lambda d: d.call("PUT", "/datastore/label", params={"image": VICTIM}, data={"params": "{}"}),
        stock=True,
    ),
    refused("with params that are no JSON", 400, "must be a JSON object", lambda d: d.put_label(params="{nonsense")),
    refused("with params that are a list", 400, "JSON object, got list", lambda d: d.put_label(params="[1]")),
    refused("with params 200,000 deep", 400, "JSON", lambda d: d.put_label(params=DEEP)),
    refused("with params 500 deep", 400, "levels deep", lambda d: d.put_label(params=QUITE_DEEP)),
    refused("with params of NaN", 400, "finite", lambda d: d.put_label(params='{"note": NaN}')),
    refused("with half a character", 400, "Unicode", lambda d: d.put_label(params='{"ticket": "\\ud800"}')),
    refused("with params of 1 MB", 400, "maximum size", with_params(client_id="x" * (1 << 20)), stock=True),
    refused("by a very long name", 400, "at most 200 characters", with_params(client_id="x" * 201)),
    refused("by a name with a bell", 400, "printable", with_params(client_id="a\a")),
    refused("by a number", 400, "printable text", with_params(client_id=7)),
    *(
        refused(f"for slices {slices!r}", 400, "annotated_slices", with_params(annotated_slices=slices))
        for slices in ([-1], [10_000], [0.5], [True], ["1"], [], [[1]], "1", {"0": 1}, 1)
    ),
    refused("for an unknown ticket", 404, "no ticket 'nosuch'", with_params(ticket="nosuch")),
    refused("for a ticket that is none", 400, "ticket must be", with_params(ticket=[1])),
    refused(
        "for another image's ticket",
        409,
        f"asks for image .* the label is for '{VICTIM}'",
        lambda d: d.put_label(params={"ticket": d.foreign_ticket()}),
    ),
    refused(
        "naming a class that is none", 400, "named 'tumour'", with_params(label_info=[{"name": "tumour", "idx": 1}])
    ),
    *(
        refused(f"naming classes as {info!r}"[:40], 400, "label_info", with_params(label_info=info))
        for info in ("organ", [1], [{"name": 1}], [{"name": "organ", "idx": "1"}], [{"name": "organ"}] * 300)
    ),
]

COMMANDS = [
    refused("unknown strategy", 404, "no strategy 'nosuch'. Known: .*random", lambda d: d.next_sample("nosuch")),
    refused(
        "unknown model",
        404,
        "no model 'nosuch'. Known: unet2d",
        lambda d: d.call("POST", "/infer/nosuch", params={"image": VICTIM}),
    ),
    refused("unknown trainer", 404, "no model 'nosuch'. Known: unet2d", lambda d: d.post("/train/nosuch")),
    refused("unknown scoring method", 404, "'nosuch'. Known: .*max_entropy", lambda d: d.post("/scoring/nosuch")),
    refused(
        "unknown model, many images", 404, "no model 'nosuch'. Known: unet2d", lambda d: d.post("/batch/infer/nosuch")
    ),
    refused("another strategy in the body", 400, "names 'first'", lambda d: d.next_sample("random", strategy="first")),
    refused("no JSON", 422, "JSON decode error", lambda d: d.post("/activelearning/random", b"{nonsense"), stock=True),
    refused("a list for a command", 422, "dictionary", lambda d: d.post("/activelearning/random", b"[1]"), stock=True),
    refused(
        "JSON 200,000 deep", 400, "error parsing", lambda d: d.post("/activelearning/random", DEEP.encode()), stock=True
    ),
    refused("JSON 500 deep", 400, "levels deep", lambda d: d.post("/activelearning/random", QUITE_DEEP.encode())),
    refused("client_id of 1 MB", 413, "at most 1 MiB", lambda d: d.next_sample(client_id="x" * (1 << 20))),
    refused("client_id of 0.9 MB", 400, "200 characters", lambda d: d.next_sample(client_id="x" * 900_000)),
    refused("client_id with a line feed", 400, "printable", lambda d: d.next_sample(client_id="a\nb")),
    refused("client_id with a zero", 400, "printable", lambda d: d.next_sample(client_id="a\0b")),
    refused(
        "client_id of half a character",
        400,
        "Unicode",
        lambda d: d.post("/activelearning/random", b'{"client_id": "\\ud800"}'),
    ),
    refused("next is nonsense", 400, "resume or another", lambda d: d.next_sample(next="sideways")),
    refused("as many tickets as NaN", 422, "finite number", lambda d: d.post("/al/ask", b'{"n": NaN}')),
    refused("a round of 30 digits", 422, "less than", lambda d: d.get(f"/al/rounds/{'9' * 30}")),
    refused(
        "an event that is no number",
        400,
        "whole number",
        lambda d: d.call("GET", "/al/events", headers={"Last-Event-ID": b"\xb2"}),
    ),
    refused("train for -1 epochs", 400, "epochs must be", lambda d: d.post(f"/train/{d.model}", {"epochs": -1})),
    refused(
        "train for many epochs", 400, "epochs must be int", lambda d: d.post(f"/train/{d.model}", {"epochs": "many"})
    ),
    refused(
        "60 MB of JSON", 413, "at most 1 MiB", lambda d: d.post("/activelearning/random", b"{}" + b" " * (60 << 20))
    ),
    refused(
        "JSON of unknown length",
        413,
        "at most 1 MiB",
        lambda d: in_chunks(d, "POST", "/activelearning/random", content=b"{}" + b" " * (2 << 20), headers=JSON),
    ),
    refused(
        "JSON dressed as an upload",
        413,
        "at most 1 MiB",
        lambda d: d.call("POST", "/activelearning/random", content=bytes(3 << 19), headers=JUST_A_FORM),
    ),
    refused("image over the limit", 413, "max_upload_mb", lambda d: d.put_image(TOO_LARGE, image="new")),
    refused("label over the limit", 413, "max_upload_mb", lambda d: d.put_label(TOO_LARGE)),
    refused("session over the limit", 413, "max_upload_mb", lambda d: d.put_session(TOO_LARGE, "new.nii.gz", False)),
    refused(
        "inference over the limit",
        413,
        "max_upload_mb",
        lambda d: d.call("POST", f"/infer/{d.model}", files={"file": ("x.nii.gz", TOO_LARGE)}),
    ),
    refused(
        "label of unknown length over the limit",
        413,
        "max_upload_mb",
        lambda d: in_chunks(d, "PUT", f"/datastore/label?image={VICTIM}", files={"label": ("l.nii.gz", TOO_LARGE)}),
    ),
    refused("upload a model", 403, "allow_model_upload", lambda d: d.put_model(d.model)),
    refused("upload an unknown model", 404, "no model", lambda d: d.put_model("nosuch")),
    refused("delete the model", 403, "never deleted", lambda d: d.delete(f"/model/{d.model}")),
    refused("read the log", 403, "allow_logs", lambda d: d.get("/logs/")),
]

SESSIONS = [
    refused(
        "tar with ..",
        400,
        "leaves its folder",
        lambda d: d.put_session(tar((member("../new.nii.gz"), d.volume)), "a.tar.gz"),
    ),
    refused(
        "tar with .. beside a volume",
        400,
        "leaves its folder",
        lambda d: d.put_session(tar((member("v.nii.gz"), d.volume), (member("../../new"), b"x")), "a.tar.gz"),
    ),
    refused(
        "tar with an absolute path",
        400,
        "leaves its folder",
        lambda d: d.put_session(tar((member(f"{d.outside}/new.nii.gz"), d.volume)), "a.tar.gz"),
    ),
    refused(
        "tar with a link outside",
        400,
        "files and folders only",
        lambda d: d.put_session(tar((member("v.nii.gz", f"{d.outside}/planted.nii.gz"), b"")), "a.tar.gz"),
    ),
    # Inside the archive the link is harmless; moved to its session it would point at the store.
    refused(
        "tar with a link that will leave",
        400,
        "files and folders only",
        lambda d: d.put_session(
            tar((member("store.sqlite"), gzip.decompress(d.volume)), (member("a/b/v.nii", "../../store.sqlite"), b"")),
            "a.tar.gz",
        ),
    ),
    refused(
        "tar with a hard link",
        400,
        "files and folders only",
        lambda d: d.put_session(tar((member("v.nii.gz", "/etc/passwd", tarfile.LNKTYPE), b"")), "a.tar.gz"),
    ),
    refused(
        "tar that grows",
        413,
        f"at most {UPLOAD_MB} MiB",
        lambda d: d.put_session(tar((member("v.nii.gz"), bytes(100 << 20))), "a.tar.gz"),
    ),
    refused(
        "zip with ..", 400, "leaves its folder", lambda d: d.put_session(zipped("../new.nii.gz", d.volume), "a.zip")
    ),
    refused(
        "zip with an absolute path",
        400,
        "leaves its folder",
        lambda d: d.put_session(zipped(f"{d.outside}/new.nii.gz", d.volume), "a.zip"),
    ),
    refused(
        "zip that grows",
        413,
        f"at most {UPLOAD_MB} MiB",
        lambda d: d.put_session(zipped("v.nii.gz", bytes(100 << 20)), "a.zip"),
    ),
    refused(
        "zip with a password",
        400,
        "could not be unpacked",
        lambda d: d.put_session(encrypted(zipped("v.nii.gz", d.volume)), "a.zip"),
    ),
    refused(
        "tar cut short",
        400,
        "could not be unpacked",
        lambda d: d.put_session(tar((member("v.nii.gz"), d.volume))[:500], "a.tar.gz"),
    ),
    refused("no archive", 400, "could not be unpacked", lambda d: d.put_session(b"hello", "a.zip")),
    refused("archive of text", 400, "one volume", lambda d: d.put_session(zipped("readme.txt", b"hello"), "a.zip")),
    refused("no volume", 400, "could not be read", lambda d: d.put_session(b"hello", "new.nii.gz", False)),
    refused(
        "a detached volume",
        400,
        r"one of .nii.gz",
        lambda d: d.put_session(meta_image(f"{d.outside}/raw"), "new.mhd", False),
    ),
    refused(
        "a name of 300 characters", 400, "200 bytes", lambda d: d.put_session(d.volume, f"{'x' * 300}.nii.gz", False)
    ),
    refused("read a session outside", 404, "no session|not found", lambda d: d.get("/session/%2e%2e"), stock=True),
    refused(
        "read a session far outside",
        404,
        "no session|not found",
        lambda d: d.get("/session/..%2f..%2foutside"),
        stock=True,
    ),
    refused("delete a session outside", 404, "no session|not found", lambda d: d.delete("/session/%2e%2e"), stock=True),
]

# What would be kept, and break every later answer that lists it.
KEPT = [
    refused("a note that is no JSON", 400, "must be a JSON object", lambda d: d.put_note("{nonsense")),
    refused("a note that is a list", 400, "JSON object, got list", lambda d: d.put_note("[1]")),
    refused("a note about an unknown image", 404, "no image 'nosuch'", lambda d: d.put_note("{}", "nosuch")),
    refused("a note where notes about labels are", 400, "label:final", lambda d: d.put_note('{"label:final": 5}')),
    refused("a note of NaN", 400, "finite", lambda d: d.put_note('{"note": NaN}')),
    refused("a note of more than is a number", 400, "finite", lambda d: d.put_note('{"note": 1e999}')),
    refused("a note 500 deep", 400, "levels deep", lambda d: d.put_note(QUITE_DEEP)),
    refused("a note with half a character", 400, "Unicode", lambda d: d.put_note('{"note": "\\ud800"}')),
    refused("train at the rate NaN", 400, "finite", lambda d: d.post(f"/train/{d.model}", b'{"learning_rate": NaN}')),
    refused(
        "train on half a character", 400, "Unicode", lambda d: d.post(f"/train/{d.model}", b'{"device": "\\ud800"}')
    ),
]


@pytest.mark.parametrize(("attack", "status", "says"), NAMES_AND_PLACES)
def test_places(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    expect_refusal(door, attack, status, says)


@pytest.mark.parametrize(("attack", "status", "says"), LABELS)
def test_label(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    expect_refusal(door, attack, status, says)
    assert door.labels()[VICTIM] == []


@pytest.mark.parametrize(("attack", "status", "says"), COMMANDS)
def test_command(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    expect_refusal(door, attack, status, says)


@pytest.mark.parametrize(("attack", "status", "says"), SESSIONS)
def test_session(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    expect_refusal(door, attack, status, says)


# --- what is allowed


def test_the_default_host_is_this_machine(door: Door) -> None:
    """Ours was started without naming one; stock must not be, it would listen to the whole network."""
    if STOCK:
        ask = "from monailabel.main import Main; print(Main().args_parser().parse_args(['start_server']).host)"
        hosts = {subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()}
    else:
        connections = psutil.Process(door.server.process.pid).net_connections("tcp")
        hosts = {found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN}
    assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_pages_of_others_are_told_nothing(door: Door, method: str) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "DELETE"}
    answer = door.call(method, "/datastore/", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@stock_is_right_too
def test_background_everywhere_is_an_answer(door: Door) -> None:
    good = opened(door.truth(SAVED))
    answer = door.put_label(nifti(np.zeros(good.shape, np.uint8), good.affine), image=SAVED)
    assert answer.status_code == 200, answer.text
    assert "final" in door.labels()[SAVED]


@stock_is_right_too
@pytest.mark.parametrize("name", ["/home/me/label.nii.gz", "../../outside/label.nii.gz", "C:\\Users\\me\\label.nii.gz"])
def test_the_folder_of_an_uploaded_file_is_ignored(door: Door, name: str) -> None:
    """MONAI Label's own client sends the whole path of the file on the viewer's machine."""
    before = door.tree(studies=False)
    assert door.put_label(door.truth(SAVED), name, image=SAVED).status_code == 200
    assert door.put_image(name=name.replace("label", f"scan{len(name)}")).status_code == 200
    assert f"scan{len(name)}" in " ".join(door.labels())
    assert door.tree(studies=False) == before


HOSTILE = [
    "<script>alert(1)</script>",
    *(
        pytest.param(name, marks=stock_is_right_too)
        for name in (
            "<img src=x onerror=alert(1)>",
            "'; DROP TABLE images; --",
            "a \"quoted\" 'name' & more",
            "$(reboot) `reboot` %2e%2e%2f {x} %s",
            "-rf",
            "Zoë 患者 🩻",
            "x" * 200,
        )
    ),
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_strange_names_work_and_stay_inside(door: Door, name: str) -> None:
    """As an image id, and as an annotator's name."""
    before = door.tree(studies=False)
    added = door.put_image(image=name)
    assert added.status_code == 200, added.text
    assert added.json() == {"image": name}
    assert (door.server.images / f"{name}.nii.gz").is_file()
    assert door.get("/datastore/image", image=name).content == door.volume
    assert door.next_sample(client_id=name).status_code == 200
    saved = door.put_label(image=name, params={"client_id": name, "annotated_slices": [1]})
    assert saved.status_code == 200, saved.text
    assert door.get("/datastore/label", label=name, tag="final").status_code == 200
    assert (door.server.images / "labels" / "final" / f"{name}.nii.gz").is_file()
    assert "final" in door.labels()[name]
    assert door.tree(studies=False) == before
    if not STOCK:
        kept = door.get(f"/al/items/{quote(name)}").json()["submissions"]
        assert [row["annotator"] for row in kept] == [name]


def test_files_that_are_no_images_harm_no_others(door: Door) -> None:
    """A name that is not Unicode, a file that is no image, and a good image, found while the server runs."""
    (door.server.images / os.fsdecode(b"caf\xe9.nii.gz")).write_bytes(door.volume)
    (door.server.images / "broken.nii.gz").write_bytes(door.volume[:100])
    (door.server.images / "good.nii.gz").write_bytes(door.volume)
    if STOCK:
        door.call("POST", "/reload")
    wait_until(lambda: "good" in door.labels(), "the good image")
    for name in ("broken", "caf\\xe9"):
        refusal = door.put_label(image=name)
        assert refusal.status_code == 409, refusal.text
        assert "cannot be used" in reason(refusal)
    assert door.get("/datastore/image", image="caf\\xe9").status_code == 404


def test_a_label_is_never_deleted(door: Door) -> None:
    assert door.put_label(door.truth(SAVED), image=SAVED).status_code == 200
    expect_refusal(door, lambda d: d.delete("/datastore/label", id=SAVED, tag="final"), 403, "labels are kept")


# --- many at once


def at_once(work: Callable[[int], httpx.Response], times: int) -> list[httpx.Response]:
    """Answers of that many requests that start together."""
    gate = threading.Barrier(times)

    def start(number: int) -> httpx.Response:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(start, range(times)))


def test_twenty_saves_to_one_image_keep_every_slice(door: Door) -> None:
    """Each of another slice, filled with a class of its own: what one wrote, no other may lose."""
    good = opened(door.truth("patient002"))

    def save(number: int) -> httpx.Response:
        mask = np.zeros(good.shape, np.uint8)
        mask[..., number] = 1 + number % 4
        params = {"client_id": f"annotator {number}", "annotated_slices": [number]}
        return door.put_label(nifti(mask, good.affine), params=params, image="patient002")

    assert [answer.status_code for answer in at_once(save, 20)] == [200] * 20
    final = door.get("/datastore/label", label="patient002", tag="final").content
    voxels = np.asanyarray(opened(final).dataobj)
    for number in range(20):
        assert (voxels[..., number] == 1 + number % 4).all()
    kept = door.get("/al/items/patient002").json()["submissions"]
    assert sorted(row["annotator"] for row in kept) == sorted(f"annotator {number}" for number in range(20))


def test_an_image_has_one_author(door: Door) -> None:
    """Of eight that upload different volumes under one new id, one wins, and the others are told."""
    volumes = [nifti(np.full((9, 9, 9), number, np.uint8)) for number in range(8)]
    answers = at_once(lambda number: door.put_image(volumes[number], image="contested"), 8)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    winner = [answer.status_code for answer in answers].index(200)
    assert (door.server.images / "contested.nii.gz").read_bytes() == volumes[winner]


@stock_is_right_too
def test_twenty_saves_to_many_images_are_all_kept(door: Door) -> None:
    images = [f"patient{number:03d}" for number in range(2, PATIENTS + 1)]

    def save(number: int) -> httpx.Response:
        image = images[number % len(images)]
        return door.put_label(door.truth(image), image=image)

    assert [answer.status_code for answer in at_once(save, 20)] == [200] * 20
    for image in images:
        final = door.get("/datastore/label", label=image, tag="final").content
        voxels = opened(final).get_fdata()
        truth = opened(door.truth(image)).get_fdata()
        assert np.array_equal(voxels, truth)
        assert "final" in door.labels()[image]


@pytest.mark.parametrize("strategy", ["random", "first" if STOCK else "spread"])
def test_eight_annotators_never_get_the_same(door: Door, strategy: str) -> None:
    answers = at_once(lambda number: door.next_sample(strategy, client_id=f"{strategy} {number}"), 8)
    assert [answer.status_code for answer in answers] == [200] * 8
    given = [(answer.json()["id"], *answer.json().get("ask", {}).get("slices", [])) for answer in answers]
    assert len(set(given)) == 8


def answered_while(door: Door, busy: Callable[[], bool]) -> int:
    """How many requests are answered before `busy` says no; each must be answered well."""
    count = 0
    while busy():
        assert door.get("/info/").status_code == 200
        assert door.next_sample(door.strategy, client_id=f"{count % 3}").status_code == 200
        count += 2
    return count


def test_two_trainings_at_once_are_one(door: Door) -> None:
    assert door.put_label(door.truth(SAVED), image=SAVED).status_code == 200
    answers = at_once(lambda number: door.post(f"/train/{door.model}", {}), 4)
    door.settle()
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429]
    assert "running already" in next(reason(answer) for answer in answers if answer.status_code == 429)


def test_who_waits_for_a_job_leaves_room_for_others(door: Door) -> None:
    """Each holds a thread until the job ends: of forty that come at once, most are told to ask for the status instead."""
    answers = at_once(lambda _: door.post("/scoring/random?run_sync=true&enqueue=true", {"budget": 1}), 40)
    sent_away = [answer for answer in answers if answer.status_code != 200]
    assert 32 <= len(sent_away) < 40
    assert all(answer.status_code == 429 and "ask for the status" in reason(answer) for answer in sent_away)


@stock_is_right_too
def test_requests_are_answered_while_a_training_runs(door: Door) -> None:
    assert door.put_label(door.truth(SAVED), image=SAVED).status_code == 200
    assert door.post(f"/train/{door.model}", {"epochs": 10_000}).status_code == 200
    wait_until(lambda: door.training() == "RUNNING", "the training to begin")
    asked = iter(range(20))
    assert answered_while(door, lambda: next(asked, None) is not None) == 40
    assert door.training() == "RUNNING"
    door.settle()


@pytest.fixture(scope="module")
def trained(door: Door) -> str:
    """How a training ended that an annotator's broken file came before."""
    door.settle()
    assert door.put_label(b"not an image", image="patient003").status_code in (200, 400)
    for image in ("patient002", "patient004"):
        assert door.put_label(door.truth(image), image=image).status_code == 200
    assert door.post(f"/train/{door.model}", {}).status_code == 200
    wait_until(lambda: door.training() not in UNDER_WAY, "the training to end")
    return door.training()


def test_a_bad_label_does_not_stop_training(trained: str) -> None:
    assert trained == "DONE"


def test_requests_are_answered_while_an_inference_runs(door: Door, trained: str) -> None:
    """Compared with stock, where one inference stops the whole server."""
    large = nifti(np.zeros((128, 128, 240), np.int16), np.eye(4))

    def infer() -> httpx.Response:
        return door.call("POST", f"/infer/{door.model}", params={"output": "json"}, files={"file": ("x.nii.gz", large)})

    with ThreadPoolExecutor(1) as thread:
        inference = thread.submit(infer)
        count = answered_while(door, lambda: not inference.done())
        assert inference.result().status_code == 200
    assert count >= 10


def test_an_inference_does_not_take_a_path_from_params(door: Door, trained: str) -> None:
    """Here the mask has the shape of the image that the id names, whatever else the client asks for."""
    small = door.outside / "small.nii.gz"
    small.write_bytes(nifti(np.zeros((8, 9, 10), np.int16)))
    answer = door.infer({"image": str(small), "result_extension": ".nii.gz"}, image=VICTIM, output="image")
    assert answer.status_code == 200, answer.text
    mask = opened(answer.content)
    assert mask.shape == opened(door.volume).shape


@pytest.mark.skipif(STOCK, reason="stock keeps its state elsewhere")
def test_what_annotators_sent_never_becomes_an_image(door: Door, tmp_path: Path) -> None:
    """Even with the state folder in plain sight among the images."""
    studies, state = tmp_path / "studies", tmp_path / "studies" / "state"
    shutil.copytree(door.server.root / "labels", studies)
    loop = Loop(
        Store(f"sqlite:///{tmp_path / 'store.sqlite'}"), AppConfig(labels=("organ", "vessel", "wall", "lesion"))
    )
    datastore = FolderDatastore(studies, state, loop)
    for _ in range(2):
        datastore.refresh()
        assert len(datastore.list_images()) == PATIENTS
        datastore.submit(VICTIM, studies / f"{VICTIM}.nii.gz")
    with pytest.raises(BadInput, match="not for images"):
        datastore.add_image("state/new", str(studies / f"{VICTIM}.nii.gz"), {})
    loop.store.close()


@pytest.mark.skipif(STOCK, reason="stock has one process")
def test_what_another_process_submits_is_composed_here(door: Door, tmp_path: Path) -> None:
    """A batch inference runs in a process of its own, which ends without renewing the masks."""
    studies, state = tmp_path / "studies", tmp_path / "state"
    # Not what the running server keeps there: its files come and go.
    shutil.copytree(door.server.root / "images", studies, ignore=shutil.ignore_patterns(".nextslice", "labels"))
    loop = Loop(
        Store(f"sqlite:///{tmp_path / 'store.sqlite'}"), AppConfig(labels=("organ", "vessel", "wall", "lesion"))
    )
    here, there = FolderDatastore(studies, state, loop), FolderDatastore(studies, state, loop)
    here.refresh()
    there.submit(VICTIM, door.server.root / "labels" / f"{VICTIM}.nii.gz")
    assert loop.catalogue.behind() == [VICTIM]
    here.refresh()
    here.settle()
    assert loop.catalogue.behind() == []
    loop.store.close()


@pytest.mark.parametrize(("attack", "status", "says"), KEPT)
def test_kept(door: Door, attack: Callable[[Door], httpx.Response], status: int, says: str) -> None:
    expect_refusal(door, attack, status, says)


def test_a_strange_note_does_not_stop_the_strategies(door: Door) -> None:
    assert door.put_note('{"strategy": "x"}').status_code == 200
    assert door.next_sample().status_code == 200
    assert door.get("/datastore/image/info", image=NOTED).json() == {"strategy": "x"}


def test_the_app_is_not_rebuilt_by_everybody(door: Door) -> None:
    expect_refusal(door, lambda d: d.call("POST", "/reload"), 403, "allow_reload")
    assert door.next_sample().status_code == 200
