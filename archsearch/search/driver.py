"""Running a sweep's trials with Ray Tune.

Tune keeps actors busy and tells us when they die; what is tried, what counts and what is kept is decided in
`archsearch.search.sweep`. Tune's own checkpoints, restores and schedulers are not used.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from archsearch.search.place import Place, this_machine
from archsearch.search.ray_session import clear_up
from archsearch.search.space import SearchSpace
from archsearch.search.storage import mirrored
from archsearch.search.sweep import Sweep

INTERRUPTED = 130


class Reporter(Protocol):
    """Shows the study's course; called often, from the thread that runs the sweep."""

    def update(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to. front: members of the Pareto front; counts: trials in each state."""

    run: Path
    front: int
    counts: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    exhausted: bool = False

    @property
    def exit_code(self) -> int:
        """0 well, 1 no trial completed, 3 some failed, 130 interrupted."""
        if self.interrupted:
            return INTERRUPTED
        if not self.counts.get("complete"):
            return 1
        return 3 if self.counts.get("failed") else 0


def run_sweep(
    space: SearchSpace,
    out: Path,
    *,
    trials: int | None = None,
    open_reporter: Callable[[Path], AbstractContextManager[Reporter]] | None = None,
    stop: threading.Event | None = None,
) -> SweepResult:
    """Search `space`, recording everything in the folder `out`; an unfinished sweep there is continued.

    trials: candidates to train in all; default: the space's. open_reporter: called with `out` once its record
    can be read; what it returns is entered, told to update often, and left at the end. stop: set it to
    interrupt, as the first Ctrl-C does: running trials write their checkpoints and the sweep ends. A second
    Ctrl-C ends the process at once.

    Raises StudyError where `out` is in use, or is a run over another space; SpecError where the space's text
    cannot be read, or its trials ask for resources that are not there.
    """
    space.check_data()
    place = this_machine(space)
    sweep = Sweep(space, out, trials, place.concurrency)
    stop = stop or threading.Event()
    with ExitStack() as stack:
        stack.callback(sweep.close)
        stack.enter_context(mirrored(space, out, sweep.log))
        reporter = None if open_reporter is None else stack.enter_context(open_reporter(out))
        if sweep.has_work:
            _work(sweep, place, reporter, stop)
        front = sweep.write_front()
        interrupted = stop.is_set() and (sweep.has_work or "running" in sweep.counts())
        return SweepResult(out, front, sweep.counts(), interrupted, sweep.exhausted)


def _work(sweep: Sweep, place: Place, reporter: Reporter | None, stop: threading.Event) -> None:
    """One session: start Ray, train until there is nothing left or someone says stop."""
    state = "interrupted"
    sweep.log.session("started")
    try:
        with _signals(sweep.out, stop, reporter) as reinstall, place.session(sweep.out) as folder:
            reinstall()  # Ray's start replaces the handler of SIGTERM
            from archsearch.search.tuning import tune_trials

            tune_trials(sweep, folder, place.concurrency, reporter, stop)
        sweep.settle()
        sweep.note_exhaustion()
        if not sweep.has_work and "running" not in sweep.counts():
            state = "finished"
    finally:
        sweep.log.session(state)


@contextmanager
def _signals(run: Path, stop: threading.Event, reporter: Reporter | None) -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM set `stop`; a second one ends the process. Yields what installs them again."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            return
        if reporter is not None:
            reporter.close()
        clear_up(run)
        # Workers end with the run's lock, Ray's daemons with this process; there is nothing to wait for.
        os._exit(INTERRUPTED)

    def install() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install()
    try:
        yield install
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
