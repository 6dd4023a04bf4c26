"""Tells that something changed in the studies folder, by the system's file events."""

import logging
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

logger = logging.getLogger(__name__)

_DIRECTORY_EVENTS: list[type[FileSystemEvent]] = [DirCreatedEvent, DirDeletedEvent, DirMovedEvent]
_EVENTS: list[type[FileSystemEvent]] = [
    *_DIRECTORY_EVENTS, FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileModifiedEvent, FileMovedEvent
]  # fmt: skip


class FolderWatcher(FileSystemEventHandler):
    """Watches the folder itself, and everything below each folder in it that is the user's.

    The server's own folders get no watch at all: a save writes several files there, and hearing of each of them would take
    a good part of the time a save takes.

    Args:
        is_ours: whether nothing of the user's can be at a path.
        changed: called, from a thread of its own, when there is something to look at.
    """

    def __init__(self, root: Path, is_ours: Callable[[Path], bool], changed: Callable[[], None]) -> None:
        self._root, self._is_ours, self._changed = root, is_ours, changed
        self._observer = Observer()
        self._followed: dict[Path, ObservedWatch] = {}

    def start(self) -> None:
        """Begin; where the system has no events to give, say so, and leave new images to the regular rescan."""
        try:
            self._observer.schedule(self, str(self._root), recursive=False, event_filter=_EVENTS)
            self._follow()
            self._observer.start()
        except OSError as error:
            logger.warning(
                "No file events for %s (%s); new images are found by rescanning", self._root, error.strerror or error
            )

    def stop(self) -> None:
        """End, if it ever began."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join(5)

    def _follow(self) -> None:
        """Watch the user's folders in the root that are there now, and no other."""
        there = {path for path in self._root.iterdir() if path.is_dir() and not path.is_symlink() and self._cares(path)}
        for path in self._followed.keys() - there:
            self._observer.unschedule(self._followed.pop(path))
        for path in there - self._followed.keys():
            self._followed[path] = self._observer.schedule(self, str(path), recursive=True, event_filter=_EVENTS)

    def _cares(self, path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(self._root).parts) and not self._is_ours(path)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Look, if anything of the user's is meant."""
        paths = [Path(str(path)) for path in (event.src_path, event.dest_path) if path]
        if not any(path != self._root and self._cares(path) for path in paths):
            return
        if event.is_directory and any(path.parent == self._root for path in paths):
            try:
                self._follow()
            except OSError as error:
                logger.warning("New images below %s are found by rescanning (%s)", self._root, error)
        self._changed()
