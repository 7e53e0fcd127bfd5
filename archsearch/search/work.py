"""One trial's work, in slices short enough to be interrupted. Imports torch only when a trial begins."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.experiment.spec import load_experiment
from archsearch.study.schema import METRICS, SPEC
from archsearch.training.errors import TrainingFailed

if TYPE_CHECKING:
    from archsearch.experiment.run import ExperimentRun

SLICE_SECONDS = (0.5, 5.0)
"""A slice is a twentieth of the steps, but neither shorter nor longer than this."""

_LOOK_SECONDS = 0.25
_LOCK_PATIENCE_SECONDS = 60.0
ERROR = "error.txt"

Outcome = dict[str, Any]
"""state: complete | failed | interrupted; with `metrics` or `cause` {kind, message, step}, and `seconds`."""


class TrialWork:
    """Trains and scores the experiment in a trial's folder, continuing from its checkpoint.

    stop: a file whose existence asks every trial to write its checkpoint and end.
    """

    def __init__(self, folder: Path, stop: Path, device: str = "cpu"):
        self.folder = folder
        self.stop = stop
        self.device = device
        self.run: ExperimentRun | None = None
        self._lock: int | None = None

    def advance(self) -> Outcome | None:
        """Work for a slice; what became of the trial, once that is known. Never raises an `Exception`."""
        try:
            outcome = self._advance()
        except Exception as error:
            outcome = self._failed(error)
        if outcome is not None:
            self.close()
        return outcome

    def close(self) -> None:
        """Free the memory and let go of the folder. What was not checkpointed is lost."""
        run, self.run = self.run, None
        if run is not None:
            with contextlib.suppress(Exception):
                run.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _advance(self) -> Outcome | None:
        if self._lock is None:
            self._lock = _lock(self.folder / ".lock")
        if self.run is None:
            if self.stop.exists():
                return {"state": "interrupted"}
            if (kept := _kept_scores(self.folder)) is not None:
                return kept
            self.run = self._begin()
            return None
        if not self.run.finished:
            for _ in self._pieces(self.run):
                if self.stop.exists():
                    self.run.checkpoint()
                    return {"state": "interrupted", "seconds": self.run.seconds}
            return None
        if self.stop.exists():
            self.run.checkpoint()
            return {"state": "interrupted", "seconds": self.run.seconds}
        metrics = self.run.evaluate()
        return {"state": "complete", "metrics": metrics, "seconds": self.run.seconds}

    def _begin(self) -> ExperimentRun:
        from archsearch.experiment.run import ExperimentRun

        return ExperimentRun(load_experiment(self.folder / SPEC), self.folder, self.device)

    def _pieces(self, run: ExperimentRun) -> Iterator[None]:
        """Train for one slice, pausing about four times a second."""
        began, first = time.perf_counter(), run.step
        shortest, longest = SLICE_SECONDS
        steps = 1
        while not run.finished:
            started = time.perf_counter()
            run.advance(steps)
            taken = time.perf_counter() - started
            yield
            elapsed = time.perf_counter() - began
            if elapsed >= longest or (elapsed >= shortest and run.step - first >= run.steps / 20):
                return
            steps = max(1, min(2 * steps, int(steps * _LOOK_SECONDS / max(taken, 1e-6))))

    def _failed(self, error: Exception) -> Outcome:
        with contextlib.suppress(OSError):
            (self.folder / ERROR).write_text("".join(traceback.format_exception(error)))
        cause: dict[str, Any] = {
            "kind": _kind(error),
            "message": one_line(str(error) or type(error).__name__),
        }
        if isinstance(error, TrainingFailed):
            cause |= {"message": error.message, "step": error.step}
        elif self.run is not None:
            cause["step"] = self.run.step
        return {"state": "failed", "cause": cause, "seconds": self.run.seconds if self.run else 0.0}


def one_line(text: str, limit: int = 300) -> str:
    """`text` on one line, its end kept where it is too long: that is where tracebacks say what happened."""
    text = " ".join(text.split())
    return text if len(text) <= limit else "..." + text[3 - limit :]


def _kind(error: Exception) -> str:
    if isinstance(error, TrainingFailed):
        return error.kind
    name, text = type(error).__name__, str(error).lower()
    # torch says it with a RuntimeError on CPU and with a class of its own on CUDA.
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory"
    return name


def _kept_scores(folder: Path) -> Outcome | None:
    """The scores of a trial that ended without its driver living to record them."""
    if (folder / "checkpoint.pt").exists() or not (folder / "weights.safetensors").exists():
        return None
    try:
        last = json.loads((folder / METRICS).read_text().splitlines()[-1])
        return {"state": "complete", "metrics": last["evaluation"], "seconds": last["seconds"]}
    except (OSError, ValueError, LookupError):
        return None


def _lock(path: Path) -> int:
    """Wait until no other process works in the folder: a killed driver's workers outlive it by a moment."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    give_up = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(fd)
                raise TimeoutError("another process is still working in this trial's folder") from None
            time.sleep(0.1)
