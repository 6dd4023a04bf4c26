"""Reading files in a second thread while the first computes."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_PREFETCH = 2
"""Images read ahead while the network runs; more only costs memory."""


def ahead(read: Callable[[Any], Any], keys: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """(key, read(key)) in order, read by a second thread while the first computes. An error in `read` is raised here."""
    ready: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(_PREFETCH)
    stop = threading.Event()

    def work() -> None:
        for key in keys:
            entry: tuple[Any, Any, BaseException | None]
            try:
                entry = (key, read(key), None)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
                entry = (key, None, error)
            while not stop.is_set():
                try:
                    ready.put(entry, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stop.is_set():
                return

    threading.Thread(target=work, daemon=True, name="read-ahead").start()
    try:
        for _ in keys:
            key, value, error = ready.get()
            if error is not None:
                raise error
            yield key, value
    finally:
        stop.set()
