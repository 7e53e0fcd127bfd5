"""A trial's work on a machine that may share nothing with the driver's but Ray and a storage."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.search.folder import write_whole
from archsearch.search.homes import Home, delete_files, joined, local_path, read
from archsearch.search.owner import take_storage
from archsearch.search.work import ERROR, Outcome, TrialWork
from archsearch.study.log import is_live
from archsearch.study.schema import CHECKPOINT, METRICS, SPEC, TRIALS

SCRATCH = "archsearch-trial-"
SHARE_OF_TIME = 0.1
"""Of a trial's time that copying its checkpoints may take; those in between are not copied."""

_LOOK_SECONDS = 0.5
_FOLLOW_SECONDS = 2.0
_STALE_SECONDS = 600.0
_NAMESPACE = b"archsearch"


class StopKey:
    """A stop that is said through the cluster's own store: the driver sets the key, workers look for it.

    `exists` and `touch` as a path has them.
    """

    def __init__(self, key: str):
        self.key = key
        self._said = threading.Event()

    def __str__(self) -> str:
        return self.key

    def exists(self) -> bool:
        return self._said.is_set()

    def touch(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.key, b"1", namespace=_NAMESPACE)
        self._said.set()

    def forget(self) -> None:
        """Leave nothing in the store."""
        from ray.experimental.internal_kv import _internal_kv_del

        with contextlib.suppress(Exception):  # the cluster is gone, and the key with it
            _internal_kv_del(self.key, namespace=_NAMESPACE)

    def follow(self) -> None:
        """Begin to look for the key, in a thread."""
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_exists

        while not self._said.is_set():
            with contextlib.suppress(Exception):  # the store may be out of reach for a while
                if _internal_kv_exists(self.key, namespace=_NAMESPACE):
                    self._said.set()
            time.sleep(_LOOK_SECONDS)


class AwayWork:
    """A `TrialWork` in a scratch folder of this machine, which is fetched from `home` and kept there.

    spec: the trial's experiment file; work: what `TrialWork` takes beside its folder.
    """

    def __init__(self, home: str, spec: str, *work: Any):
        clear_scratch()
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
        self.home = Home(home, spec, folder)
        self.home.fetch()
        self.work = TrialWork(folder, *work)
        self._next_store = 0.0

    def advance(self) -> Outcome | None:
        """As `TrialWork.advance`; what is reported has been stored."""
        outcome = self.work.advance()
        if self.work.share is not None and self.work.share.rank:
            return outcome  # the first process stores
        if outcome is not None or time.monotonic() >= self._next_store:
            began = time.monotonic()
            self.home.store()
            ended = time.monotonic()
            self._next_store = ended + max(_LOOK_SECONDS, (ended - began) / SHARE_OF_TIME)
        return outcome

    def close(self) -> None:
        self.work.close()
        shutil.rmtree(self.home.folder, ignore_errors=True)


def clear_scratch() -> None:
    """Remove the scratch folders of workers that were killed a while ago."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - _STALE_SECONDS and not is_live(folder):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Away:
    """The driver's side of trials that run elsewhere. storage: where their folders are kept, laid out as in a
    run; at_run: it is the run itself."""

    storage: str
    stop: StopKey
    at_run: bool
    _next_look: float = 0.0

    def take_storage(self, run: Path, study: str, space_hash: str) -> None:
        """The storage is the run's from now on. Raises StudyError where it is another's."""
        if not self.at_run:
            take_storage(self.storage, run, study, space_hash)

    def home(self, trial: str) -> str:
        return joined(self.storage, TRIALS, trial)

    def tells(self, trial: str, folder: Path) -> dict[str, str]:
        """What a worker must know beside what one here is told. folder: the trial's, in the run. verdicts:
        where a guard may say why it ended the trial, if there is a path that both ends see."""
        home = self.home(trial)
        seen = local_path(home)
        if seen is not None:
            seen.mkdir(parents=True, exist_ok=True)
        spec = (folder / SPEC).read_text()
        return {"home": home, "spec": spec, "stop": str(self.stop), "verdicts": str(seen or "")}

    def bring(self, trial: str, folder: Path) -> None:
        """Copy what a person looks at into the run's folder: the learning curve, and why a trial failed."""
        for name in (METRICS, ERROR) if not self.at_run else ():
            with contextlib.suppress(OSError, ValueError):  # not there, or out of reach
                write_whole(folder / name, read(joined(self.home(trial), name)).decode())

    def follow(self, folders: Mapping[str, Path]) -> None:
        """Bring what running trials have so far, now and then, where that is quick: from a path. folders: the
        trials', in the run."""
        if self.at_run or local_path(self.storage) is None or time.monotonic() < self._next_look:
            return
        for trial, folder in folders.items():
            self.bring(trial, folder)
        self._next_look = time.monotonic() + _FOLLOW_SECONDS

    def drop_checkpoints(self, trials: Iterable[str]) -> None:
        """Trials that were stopped are not continued."""
        for trial in trials if not self.at_run else ():
            delete_files(self.home(trial), CHECKPOINT)
