"""The process that job processes are forked from, itself forked from one that has done the imports already."""

import logging
import multiprocessing
import os
import socket
import sys
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext
from typing import Any

logger = logging.getLogger(__name__)

_PRELOADED = ["loop.preload"]


def fork_context() -> ForkServerContext:
    """How processes for jobs are started: forked from a server that has their imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def fork_server_from_here() -> None:
    """Fork multiprocessing's fork server from this process, which must have no threads and no GPU yet.

    Left to itself, multiprocessing starts a new interpreter, which does all imports again: seconds of work and hundreds
    of megabytes that are shared this way. Its own `ensure_running` finds the server running, or starts one anew should it
    have died.
    """
    server: Any = forkserver._forkserver
    with server._lock:
        if server._forkserver_pid is not None:
            return
        resource_tracker.ensure_running()
        with socket.socket(socket.AF_UNIX) as listener:
            address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
            listener.bind(address)
            if not util.is_abstract_socket_namespace(address):
                os.chmod(address, 0o600)
            listener.listen()
            # When the last process that holds the writing end is gone, the fork server ends.
            alive_r, alive_w = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if not pid:
                _serve(listener.detach(), alive_r, alive_w)
        os.close(alive_r)
        server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive_w, pid


def _serve(listener: int, alive_r: int, alive_w: int) -> None:
    """The forked process's life; it never returns."""
    try:
        os.close(alive_w)
        forkserver.main(listener, alive_r, _PRELOADED)
    except Exception:
        logger.exception("The fork server ended")
    finally:
        os._exit(0)  # a copy of the caller must not go on as the caller
