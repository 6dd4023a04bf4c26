"""The packages of the pages: fetched whole or not at all, checked, and changed for where we serve them."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from web import fetch
from web.fetch import NIIVUE, OHIF, FetchError, Package, ohif_for_subfolder

_NEEDS_NPM = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture
def local(tmp_path: Path) -> Package:
    """A package of our own, packed by the real npm from a folder."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "package.json").write_text(json.dumps({"name": "local", "version": "1.0.0"}))
    (source / "page.js").write_text("old();" * 1000)
    (source / "left.js").write_text("left();")
    package = Package(
        "local", str(source), "", {"page.js": "sub/page.js"}.get, lambda _, text: text.replace("old", "new")
    )
    with pytest.raises(FetchError, match="its digest is sha512-") as refused:
        fetch.fetch(package, tmp_path / "packages")
    return replace(package, integrity=str(refused.value).rpartition(" ")[2].rstrip("."))


@_NEEDS_NPM
def test_a_package_is_unpacked_changed_and_compressed_once(local: Package, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    assert fetch.fetch(local, packages)
    file = packages / "local" / "sub" / "page.js"
    assert file.read_text() == "new();" * 1000
    assert gzip.decompress(Path(f"{file}.gz").read_bytes()) == file.read_bytes()
    assert {path.name for path in packages.rglob("*")} == {"local", "sub", "page.js", "page.js.gz", ".fetched"}
    # There now: not even npm is asked.
    assert not fetch.fetch(local, packages, npm="no-such-npm")


@_NEEDS_NPM
def test_a_broken_fetch_leaves_what_was_there(local: Package, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    fetch.fetch(local, packages)
    before = {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()}

    def broken(name: str, text: str) -> str:
        raise FetchError("broken in the middle")

    for package, message in (
        (replace(local, integrity="sha512-of-another"), "not the package expected"),
        (replace(local, spec=str(tmp_path / "nowhere")), "npm could not bring"),
    ):
        (packages / "local" / ".fetched").write_text("an older one")
        with pytest.raises(FetchError, match=message):
            fetch.fetch(package, packages)
    with pytest.raises(FetchError, match="in the middle"):
        fetch.fetch(replace(local, changed=broken), packages)
    before[packages / "local" / ".fetched"] = b"an older one"
    assert {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()} == before


def test_without_npm_the_way_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="npm is not on PATH, and fetches @niivue/niivue"):
        fetch.fetch(NIIVUE, tmp_path, npm="no-such-npm")


def test_ohif_is_changed_for_its_folder() -> None:
    page = '<script>window.PUBLIC_URL="/"</script><link href="/a.css"><script defer src="/app.js"></script>'
    assert (
        ohif_for_subfolder("index.html", page) == '<link href="/ohif/a.css"><script defer src="/ohif/app.js"></script>'
    )
    assert ohif_for_subfolder("a.css", "src: url(/f.woff2)") == "src: url(/ohif/f.woff2)"
    with pytest.raises(FetchError, match="lacks a piece of text"):
        ohif_for_subfolder("app.bundle.1.js", "something else")


@_NEEDS_NPM
def test_the_real_packages_are_fetched(tmp_path: Path) -> None:
    """Those that `make` has fetched, or fetched here where npm's registry is reached."""
    for package, page in ((OHIF, "index.html"), (NIIVUE, "index.js")):
        folder = fetch.PACKAGES / package.folder
        if not folder.is_dir():
            try:
                fetch.fetch(package, tmp_path)
            except FetchError as error:
                pytest.skip(str(error))
            folder = tmp_path / package.folder
        assert (folder / page).is_file()
    assert "Uint16Array(dataset.PixelData)" not in next(folder.parent.glob("ohif/app.bundle.*.js")).read_text()
    assert (folder.parent / "ohif" / "LICENSE").is_file()
    assert not list(folder.parent.glob("ohif/**/*.map")) + list(folder.parent.glob("ohif/ort"))
