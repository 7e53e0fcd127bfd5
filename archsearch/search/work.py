"""One trial's work, in slices short enough to be interrupted. Imports torch only when a trial begins."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from archsearch.experiment.spec import load_experiment
from archsearch.search.folder import write_whole
from archsearch.spec import to_yaml
from archsearch.study.schema import CHECKPOINT, METRICS, SPEC
from archsearch.training.errors import TrainingFailed

if TYPE_CHECKING:
    from archsearch.experiment.run import ExperimentRun
    from archsearch.training.parallel import Share

SLICE_SECONDS = (0.5, 5.0)
"""A slice is a twentieth of the steps, but neither shorter nor longer than this."""

_LOOK_SECONDS = 0.25
_LOCK_PATIENCE_SECONDS = 60.0
ERROR = "error.txt"

REPLICATES = "replicates"

Outcome = dict[str, Any]
"""state: complete | rung | failed | interrupted | blocked; with `metrics` (means over the seeds, their
`spread` where there are several) and `tokens` trained, or `cause` {kind, message, step}, and `seconds`.
blocked: the trial's folder cannot be written, which is no fault of its own; `message` says where and why."""


class Stop(Protocol):
    """A path, or what is asked like one."""

    def exists(self) -> bool: ...


class Scores(NamedTuple):
    """Of one training: metrics, seconds of work, tokens trained."""

    metrics: dict[str, float]
    seconds: float
    tokens: int


class TrialWork:
    """Trains and scores the experiment in a trial's folder, continuing from its checkpoint.

    stop: a file (or sign) whose existence asks every trial to write its checkpoint and end. goal: the share
    of the training steps to take now; below 1, the outcome is a `rung`. seeds: trainings, each to the goal
    and one after the other; those after the first live in `replicates/` and only their seeds differ. share:
    this process's part, where several train together, each in a folder of its own; only the first one scores.
    """

    def __init__(
        self,
        folder: Path,
        stop: Stop,
        device: str = "cpu",
        goal: float = 1.0,
        seeds: int = 1,
        share: Share | None = None,
    ):
        self.folder = folder
        self.stop = stop
        self.device = device
        self.goal = goal
        self.seeds = seeds
        self.share = share
        self.run: ExperimentRun | None = None
        self._done: list[Scores] = []
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
        self._leave_run()
        if self.device.startswith("cuda"):
            _free_gpu()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    @property
    def seconds(self) -> float:
        """Work on this trial so far."""
        return sum(scores.seconds for scores in self._done) + (self.run.seconds if self.run else 0.0)

    def _advance(self) -> Outcome | None:
        if self._lock is None:
            self._lock = _lock(self.folder / ".lock")
        if self._stopped():
            return self._interrupted()
        if self.run is None:
            if (kept := _kept_scores(self._home)) is not None:
                return self._scored(kept)
            self.run = self._begin()
            return None
        if self.run.step < self._goal_step(self.run):
            for _ in self._pieces(self.run):
                if self._stopped():
                    return self._interrupted()
            return None
        return self._scored(self._score(self.run))

    def _begin(self) -> ExperimentRun:
        from archsearch.experiment.run import ExperimentRun

        experiment = load_experiment(self.folder / SPEC)
        if self._done:
            experiment = experiment.with_training(seed=experiment.training.seed + len(self._done))
            self._home.mkdir(parents=True, exist_ok=True)
            write_whole(self._home / SPEC, to_yaml(experiment.dump()))
        return ExperimentRun(experiment, self._home, self.device, self.share)

    def _stopped(self) -> bool:
        return bool(self._agreed(self.stop.exists()))

    def _agreed(self, value: int) -> int:
        """What the first of several processes says: all must take the same steps."""
        return value if self.share is None else self.share.agree(value, self.device)

    @property
    def _home(self) -> Path:
        """The folder of the training that is being done."""
        return self.folder / REPLICATES / str(len(self._done)) if self._done else self.folder

    def _goal_step(self, run: ExperimentRun) -> int:
        return run.steps if self.goal >= 1 else max(1, min(run.steps - 1, round(self.goal * run.steps)))

    def _score(self, run: ExperimentRun) -> Scores:
        """Score a run that is where it should be, leaving it on disk."""
        if self.share is not None and self.share.rank:
            return Scores({}, run.seconds, run.tokens)
        if self.goal >= 1:
            metrics = run.evaluate()
        else:
            metrics = run.glance()
            run.checkpoint()
        return Scores(metrics, run.seconds, run.tokens)

    def _scored(self, scores: Scores) -> Outcome | None:
        """One training is where it should be; what that makes of the trial, once all are."""
        self._leave_run()
        self._done.append(scores)
        if len(self._done) < self.seeds:
            return None
        names = scores.metrics.keys()
        values = {name: [one.metrics[name] for one in self._done] for name in names}
        outcome: Outcome = {
            "state": "complete" if self.goal >= 1 else "rung",
            "metrics": {name: statistics.fmean(found) for name, found in values.items()},
            "seconds": self.seconds,
            "tokens": scores.tokens,
        }
        if self.seeds > 1:
            outcome["spread"] = {name: statistics.stdev(found) for name, found in values.items()}
        return outcome

    def _interrupted(self) -> Outcome:
        if self.run is not None:
            self.run.checkpoint()
        return {"state": "interrupted", "seconds": self.seconds}

    def _leave_run(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            with contextlib.suppress(Exception):
                run.close()

    def _pieces(self, run: ExperimentRun) -> Iterator[None]:
        """Train for one slice, pausing about four times a second."""
        began, first = time.perf_counter(), run.step
        shortest, longest = SLICE_SECONDS
        goal, steps = self._goal_step(run), 1
        while run.step < goal:
            started = time.perf_counter()
            run.advance(min(steps, goal - run.step))
            taken = time.perf_counter() - started
            yield
            elapsed = time.perf_counter() - began
            far = elapsed >= shortest and run.step - first >= run.steps / 20
            if self._agreed(far or elapsed >= longest):
                return
            steps = self._agreed(max(1, min(2 * steps, int(steps * _LOOK_SECONDS / max(taken, 1e-6)))))

    def _failed(self, error: Exception) -> Outcome:
        if (message := unwritable(error, self._home)) is not None:
            return {"state": "blocked", "message": message, "seconds": self.seconds}
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
        return {"state": "failed", "cause": cause, "seconds": self.seconds}


def _free_gpu() -> None:
    """Give back what a trial's tensors held, those of a model that was only half built included."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


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


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def unwritable(error: BaseException | None, folder: Path) -> str | None:
    """Where and why something could not be written, where an error, or what led to it, says that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            denied = error.errno in (errno.EACCES, errno.EPERM)
            ours = error.filename is not None and Path(error.filename).is_relative_to(folder)
            if error.errno in _NO_ROOM or (denied and ours):
                return f"{error.filename or folder}: cannot be written: {os.strerror(error.errno)}"
        for number in _NO_ROOM:  # libraries that write by themselves
            if os.strerror(number) in str(error):
                return f"{folder}: cannot be written: {os.strerror(number)}"
        error = error.__cause__ or error.__context__
    return None


def _kept_scores(folder: Path) -> Scores | None:
    """The scores of a training that ended without its driver living to record them."""
    if (folder / CHECKPOINT).exists() or not (folder / "weights.safetensors").exists():
        return None
    try:
        *_, before, last = map(json.loads, (folder / METRICS).read_text().splitlines())
        return Scores(last["evaluation"], last["seconds"], before["tokens"])
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
