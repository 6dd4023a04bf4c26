"""The viewers of other people that our pages need, fetched once at set-up: `python -m web.fetch`.

`web/packages/ohif` is OHIF, made to live at /ohif/; `web/packages/niivue` is NiiVue, one file. Both are packages of npm, checked
by the digests written here. The server reads the folders and needs neither npm nor a network.
"""

import base64
import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = Path(__file__).parent / "packages"

_GZIP_FROM = 1400
"""Bytes from which a compressed copy is kept: smaller files fit into one network packet anyway."""
_GZIP_TYPES = (".js", ".css", ".html", ".json", ".wasm", ".svg")
_NPM_SECONDS = 600


class FetchError(Exception):
    """A package could not be had; what was there before still is."""


@dataclass(frozen=True)
class Package:
    """What is fetched, and what is kept of it.

    Attributes:
        spec: what `npm pack` is told.
        integrity: sha512- and the base64 digest of the tarball, as package-lock files have it.
        keep: the name under which a file of the tarball is kept; None leaves it out.
        changed: a text file's content as we serve it, from its kept name and content.
    """

    folder: str
    spec: str
    integrity: str
    keep: Callable[[str], str | None]
    changed: Callable[[str, str], str] = lambda name, text: text


def fetch(package: Package, packages: Path = PACKAGES, *, npm: str = "npm") -> bool:
    """Put a package in its folder, whole or not at all; False if it is there already.

    Raises:
        FetchError: npm is missing or fails, or the tarball is not the one expected.
    """
    target = packages / package.folder
    stamp = f"{package.integrity} {_digest(Path(__file__).read_bytes())}"
    if (target / ".fetched").is_file() and (target / ".fetched").read_text() == stamp:
        return False
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages, prefix=".fetching-") as work:
        tarball = _pack(package, Path(work), npm)
        got = _digest(tarball.read_bytes())
        if got != package.integrity:
            raise FetchError(f"{package.spec} is not the package expected: its digest is {got}.")
        fresh = Path(work) / "fresh"
        _unpack(package, tarball, fresh)
        (fresh / ".fetched").write_text(stamp)
        if target.exists():
            target.rename(Path(work) / "old")
        fresh.rename(target)
    return True


def _digest(content: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def _pack(package: Package, work: Path, npm: str) -> Path:
    found = shutil.which(npm)
    if not found:
        raise FetchError(f"npm is not on PATH, and fetches {package.spec}. Debian has it in the package npm.")
    command = [found, "pack", package.spec, "--ignore-scripts", "--fetch-retries=1", "--pack-destination", str(work)]
    try:
        ran = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_NPM_SECONDS)
    except subprocess.TimeoutExpired:
        raise FetchError(f"npm did not bring {package.spec} within {_NPM_SECONDS} s.") from None
    tarballs = list(work.glob("*.tgz"))
    if ran.returncode or len(tarballs) != 1:
        raise FetchError(f"npm could not bring {package.spec}: {ran.stderr.strip()[-600:]}")
    return tarballs[0]


def _unpack(package: Package, tarball: Path, folder: Path) -> None:
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = package.keep(member.name.removeprefix("package/")) if member.isfile() else None
            if name is None:
                continue
            file = (folder / name).resolve()
            if not file.is_relative_to(folder.resolve()):
                raise FetchError(f"{package.spec} has a file outside of its folder: {member.name!r}.")
            stream = archive.extractfile(member)
            assert stream is not None
            content = stream.read()
            if file.suffix in (".js", ".css", ".html", ".json"):
                content = package.changed(name, content.decode()).encode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            if file.suffix in _GZIP_TYPES and len(content) >= _GZIP_FROM:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(content, 9, mtime=0))


# --- OHIF ---

_OHIF_LEFT_OUT = re.compile(
    r"dist/(ort/|dicom-microscopy-viewer/|customizations/|assets/apple-|assets/mstile|_headers|_redirects|serve\.json|sw\.js"
    r"|google\.js|silent-refresh\.html|app-config\.js)|.*\.map$"
)
"""136 MB of ONNX runtime, a microscopy viewer, and what names other hosts."""

# The bundles are not minified: these are pieces of their text. OHIF is built for the root of a host, and has no relative mode.
_OHIF_TEXTS = {
    '__webpack_require__.p = "/"': '__webpack_require__.p = "/ohif/"',
    "'/dicom-microscopy-viewer/": "'/ohif/dicom-microscopy-viewer/",
    # dcmjs takes a SEG's bytes two at a time, and fails where rows times columns is odd.
    "var pixels = new Uint16Array(dataset.PixelData);": (
        "var pixels = ArrayBuffer.isView(dataset.PixelData) ? new Uint8Array(dataset.PixelData.buffer, "
        "dataset.PixelData.byteOffset, dataset.PixelData.byteLength) : new Uint8Array(dataset.PixelData);"
    ),
    "new Uint16Array(ds.PixelData, frame * frameSize, frameSize / 2)": (
        "new Uint8Array(ds.PixelData, frame * frameSize, frameSize)"
    ),
}


def _keep_ohif(name: str) -> str | None:
    if name in ("LICENSE", "package.json"):
        return name
    return name.removeprefix("dist/") if name.startswith("dist/") and not _OHIF_LEFT_OUT.match(name) else None


def ohif_for_subfolder(name: str, text: str) -> str:
    """A file of OHIF as it is served below /ohif/ and without inline scripts.

    Raises:
        FetchError: a piece of text that must be changed is not where it was.
    """
    if name == "index.html":
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        text = re.sub(r"<link rel=\"apple-touch[^>]*>|<meta name=\"msapplication[^>]*>", "", text)
        return re.sub(r'(href|src|content)="/', r'\1="/ohif/', text)
    if name == "manifest.json":
        return text.replace('"/', '"/ohif/')
    if name.endswith(".css"):
        return text.replace("url(/", "url(/ohif/")
    if name.endswith(".js"):
        if name.startswith("app.bundle.") and not all(old in text for old in _OHIF_TEXTS):
            raise FetchError(f"OHIF's {name} lacks a piece of text that must be changed for /ohif/.")
        for old, new in _OHIF_TEXTS.items():
            text = text.replace(old, new)
    return text


OHIF = Package(
    "ohif",
    "@ohif/app@3.13.2",
    "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
    _keep_ohif,
    ohif_for_subfolder,
)

NIIVUE = Package(
    "niivue",
    "@niivue/niivue@0.69.0",
    "sha512-YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==",
    # The package has no file with its licence: package.json names it, BSD-2-Clause.
    {"package.json": "package.json", "README.md": "README.md", "dist/index.js": "index.js"}.get,
)


def main() -> int:
    """Fetch what is missing; 1 if something could not be had."""
    failed = 0
    for package in (OHIF, NIIVUE):
        try:
            if fetch(package):
                print(f"Fetched {package.spec}.")
        except FetchError as error:
            print(f"{error}\nThe server runs without it; its pages say what is missing.", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
