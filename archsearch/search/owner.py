"""Whose a storage is: two runs that kept their trials in one place would take each other's for their own.

The first run that uses a storage leaves a file at its root that names the run. A run's own folder needs none:
its record says whose it is.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from archsearch.search import homes
from archsearch.study import StudyError
from archsearch.study.follow import record_id
from archsearch.study.schema import RECORD, SPEC, TRIALS

OWNER = "owner.json"
"""At a storage's root: `run`, the `record_id` of the one that uses it, and for people its folder, host, study
and the space's hash."""


def check_storage(storage: str, run: Path) -> None:
    """Refuse a storage that holds another run's trials. `run` need not exist yet. Raises StudyError."""
    try:
        own = record_id(run)
    except FileNotFoundError:
        own = None
    owner = _owner(storage)
    if owner is None:
        _check_unnamed(storage, run)
    elif owner["run"] != own:
        folder, host, study = (owner.get(name) for name in ("folder", "host", "study"))
        raise _refusal(storage, run, f"is used by another run, {folder} on {host} (study {study})")


def take_storage(storage: str, run: Path, study: str, space_hash: str) -> None:
    """Make the storage the run's, whose record has begun. Raises StudyError where it is another's.

    Of two that begin at once, one is refused: on a local or network file system for certain, elsewhere as
    `homes.write_new` can tell.
    """
    check_storage(storage, run)
    mark = homes.joined(storage, OWNER)
    if not homes.exists(mark):
        owner = {
            "run": record_id(run),
            "folder": str(run.resolve()),
            "host": socket.gethostname(),
            "study": study,
            "space_hash": space_hash,
        }
        homes.write_new(mark, json.dumps(owner).encode() + b"\n")
        check_storage(storage, run)


def is_run_itself(storage: str, run: Path) -> bool:
    """Whether the storage is the run's own folder."""
    path = homes.local_path(storage)
    return path is not None and os.path.realpath(path) == os.path.realpath(run)


def _owner(storage: str) -> dict[str, Any] | None:
    """What the storage's file says; None where it has none."""
    mark = homes.joined(storage, OWNER)
    if not homes.exists(mark):
        return None
    try:
        found = json.loads(homes.read(mark))
        if isinstance(found, dict) and isinstance(found.get("run"), str):
            return found
    except ValueError:
        pass
    raise StudyError(f"{mark}: does not name a run; delete it if the trials beside it are this run's")


def _check_unnamed(storage: str, run: Path) -> None:
    """A storage that names no run is an older version's, whose trials are known here, or has none."""
    if homes.exists(homes.joined(storage, RECORD)):
        raise _refusal(storage, run, "is another run's folder")
    for trial in homes.folders(homes.joined(storage, TRIALS)):
        spec = homes.joined(storage, TRIALS, trial, SPEC)
        ours = run / TRIALS / trial / SPEC
        if homes.exists(spec) and not (ours.exists() and ours.read_bytes() == homes.read(spec)):
            raise _refusal(storage, run, f"holds another run's trials, such as {trial}")


def _refusal(storage: str, run: Path, why: str) -> StudyError:
    own = homes.joined(storage, run.resolve().name)
    return StudyError(f"{storage}: {why}; expected --storage with a place for this run alone, such as {own}")
