"""File events of the user's folders, and of no other."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datastore.watcher import FolderWatcher

_SOON = 20.0
_QUIET = 0.5


class Told:
    """How often, and waiting for it."""

    def __init__(self) -> None:
        self.heard = threading.Event()

    def after(self, seconds: float) -> bool:
        """Whether something was told within that time; the next question begins anew."""
        heard = self.heard.wait(seconds)
        self.heard.clear()
        return heard


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    (tmp_path / "site a").mkdir()
    for ours in ("labels/final", ".nextslice/incoming"):
        (tmp_path / ours).mkdir(parents=True)
    told = Told()
    watcher = FolderWatcher(tmp_path, lambda path: path.relative_to(tmp_path).parts[0] == "labels", told.heard.set)
    watcher.start()
    yield told
    watcher.stop()


@pytest.mark.parametrize("place", ["a.nii.gz", "site a/b.nii.gz", "site a/deep/er/c.nii.gz"])
def test_new_changed_and_removed_files_are_told(tmp_path: Path, told: Told, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    told.after(_QUIET)
    for change in (lambda: file.write_bytes(b"1"), lambda: file.write_bytes(b"22"), file.unlink):
        change()
        assert told.after(_SOON)
        told.after(_QUIET)


def test_files_in_a_new_folder_are_told(tmp_path: Path, told: Told) -> None:
    new = tmp_path / "site b"
    for _ in range(2):  # the second time it comes back after it was removed
        new.mkdir()
        assert told.after(_SOON)
        told.after(_QUIET)
        (new / "a.nii.gz").write_bytes(b"1")
        assert told.after(_SOON)
        told.after(_QUIET)
        (new / "a.nii.gz").unlink()
        new.rmdir()
        assert told.after(_SOON)
        told.after(_QUIET)


def test_a_folder_that_is_moved_in_is_told_with_what_comes_into_it(tmp_path: Path, told: Told) -> None:
    outside = tmp_path.parent / f"{tmp_path.name} outside"
    outside.mkdir()
    outside.rename(tmp_path / "moved")
    assert told.after(_SOON)
    told.after(_QUIET)
    (tmp_path / "moved" / "a.nii.gz").write_bytes(b"1")
    assert told.after(_SOON)


def test_our_own_and_hidden_files_are_not_told(tmp_path: Path, told: Told) -> None:
    for name in ("labels/final/a.nii.gz", ".nextslice/incoming/x", ".hidden", "site a/.part"):
        (tmp_path / name).write_bytes(b"1")
    assert not told.after(_QUIET)


def test_a_folder_that_cannot_be_watched_is_left_to_the_rescan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = FolderWatcher(tmp_path / "absent", lambda path: False, lambda: None)
    watcher.start()
    assert "found by rescanning" in caplog.text
    watcher.stop()
