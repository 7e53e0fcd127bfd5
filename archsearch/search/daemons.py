"""Ray's own processes: whether those that this process started still run."""

from __future__ import annotations

from typing import Any

from archsearch.search.retries import SessionLost

_STORE = "gcs_server"
_SCHEDULER = "raylet"


class StoreLost(SessionLost):
    """The process that knows a session's actors is gone. Ray's library ends this process for it, a minute
    later and with lines of its own: there is no other session to be had in it."""


def check_daemons() -> None:
    """Raise SessionLost where a process that nothing works without has ended; those of a cluster that we only
    joined are not ours to look at."""
    from ray._private import worker

    node = worker._global_node
    started: dict[str, list[Any]] = {} if node is None else node.all_processes
    for name, error in ((_STORE, StoreLost), (_SCHEDULER, SessionLost)):
        for daemon in started.get(name, ()):
            status = daemon.process.poll()
            if status is not None:
                raise error(f"Ray's {name} ended with status {status}")
