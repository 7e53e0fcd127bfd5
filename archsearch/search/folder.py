"""A run's folder: whose it is, and files that are written whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archsearch.search.space import SearchSpace
from archsearch.spec import SpecError
from archsearch.study import Study, StudyError
from archsearch.study.log import StudyWriteError
from archsearch.study.schema import FRONT, LOCK, RECORD, SPACE, SPEC, TRIALS

SHOWN_CHANGES = 5


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out}: is a file; expected a folder for the run")
    if out.is_dir() and not (out / RECORD).exists():
        others = sorted(entry.name for entry in out.iterdir() if entry.name != LOCK)
        if others:
            raise StudyError(f"{out}: not a run folder: it holds {others[0]!r} but no {RECORD}")


def check_same(space: SearchSpace, out: Path) -> None:
    """Refuse to continue a run with another space, saying what changed."""
    recorded = out / SPACE
    if not recorded.exists():
        return
    try:
        changes = space.changes_since(recorded)
    except SpecError as error:
        raise StudyError(f"{error} (the run's copy of its space)") from None
    if changes:
        shown = "; ".join(changes[:SHOWN_CHANGES])
        more = f"; and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
        raise StudyError(
            f"{out}: the search space has changed since this run began: {shown}{more}; "
            f"choose another folder, or continue with {recorded}"
        )


def write_whole(path: Path, text: str) -> None:
    """The file holds all of the text or is as it was. Raises StudyWriteError."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which path could not be written, where the system refuses. Raises StudyWriteError."""
    try:
        yield
    except StudyWriteError:
        raise
    except OSError as error:
        raise StudyWriteError(f"{path}: cannot be written: {error.strerror or error}", error) from error


def write_front(study: Study) -> int:
    """Make `front/` hold the experiments of the front's members and nothing else; how many they are."""
    members = {f"{trial.id}.yaml": study.run_dir / TRIALS / trial.id / SPEC for trial in study.front()}
    folder = study.run_dir / FRONT
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("*.yaml"):
            if stale.name not in members:
                stale.unlink()
    for name, spec in members.items():
        if not (folder / name).exists():
            write_whole(folder / name, spec.read_text())
    return len(members)
