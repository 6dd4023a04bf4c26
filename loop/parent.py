"""Processes that end with the one that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Stop when the parent process is gone: nobody is left who could stop us, or use what we make."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
