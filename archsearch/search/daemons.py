"""Ray's own processes: whether those that this process started still run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from archsearch.search.retries import SessionLost

_STORE = "gcs_server"
_SCHEDULER = "raylet"
_LOOK_SECONDS = 1.0


def check_scheduler() -> None:
    """Raise SessionLost where this machine's raylet has ended: trials go on in another session only."""
    if (ended := _ended(_SCHEDULER)) is not None:
        raise SessionLost(ended)


@contextmanager
def store_watched(lost: Callable[[str], None]) -> Iterator[None]:
    """Call `lost`, from another thread, where the process that knows a session's actors ends.

    Without it Ray's calls do not come back, and there is no other session to be had in this process.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if (ended := _ended(_STORE)) is not None:
                lost(ended)

    thread = threading.Thread(target=watch, name="ray's store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ended(name: str) -> str | None:
    """How a process of ours ended; None while it runs. Those of a cluster that we joined are not ours."""
    from ray._private import worker

    node = worker._global_node
    started: dict[str, list[Any]] = {} if node is None else node.all_processes
    for daemon in started.get(name, ()):
        status = daemon.process.poll()
        if status is not None:
            return f"Ray's {name} ended with status {status}"
    return None
