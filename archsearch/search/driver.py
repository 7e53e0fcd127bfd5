"""Running a sweep's trials with Ray Tune.

Tune keeps actors busy and tells us when they die; what is tried, what counts and what is kept is decided in
`archsearch.search.sweep`. Tune's own checkpoints, restores and schedulers are not used.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from archsearch.search.cluster import on_cluster
from archsearch.search.daemons import store_watched
from archsearch.search.interrupts import INTERRUPTED, Interrupts, interrupts
from archsearch.search.place import Place, this_machine
from archsearch.search.retries import BACKOFF_SECONDS, SessionLost
from archsearch.search.space import SearchSpace
from archsearch.search.storage import mirrored
from archsearch.search.sweep import Sweep
from archsearch.search.work import one_line
from archsearch.study.log import StudyWriteError

FAILED = 1


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
    address: str | None = None,
    storage: str | None = None,
) -> SweepResult:
    """Search `space`, recording everything in the folder `out`; an unfinished sweep there is continued.

    trials: candidates to train in all; default: the space's. open_reporter: called with `out` once its record
    can be read; what it returns is entered, told to update often, and left at the end. stop: set it to
    interrupt, as the first Ctrl-C does: running trials write their checkpoints and the sweep ends. A second
    Ctrl-C ends the process at once. address: of a Ray cluster to run trials on (`on_cluster`), and storage
    where its nodes keep their files; default: this machine.

    Raises StudyError where `out` is in use, or is a run over another space, or the storage is another run's;
    SpecError where the space's text cannot be read, or its trials ask for resources that are not there.
    """
    stop = stop or threading.Event()
    with ExitStack() as stack:
        signals = stack.enter_context(interrupts(out, stop))
        space.check_data()
        place = this_machine(space) if address is None else on_cluster(space, out, address, storage)
        sweep = Sweep(space, out, trials, place.concurrency)
        stack.callback(sweep.close)
        if place.away is not None:
            place.away.take_storage(out, space.name, space.hash)
        stack.enter_context(mirrored(space, out, sweep.log))
        if open_reporter is not None:
            signals.reporter = stack.enter_context(open_reporter(out))
        if sweep.has_work:
            _work(sweep, place, signals)
        front = sweep.write_front()
        interrupted = stop.is_set() and (sweep.has_work or "running" in sweep.counts())
        return SweepResult(out, front, sweep.counts(), interrupted, sweep.exhausted)


def _work(sweep: Sweep, place: Place, signals: Interrupts) -> None:
    """Train until there is nothing left or someone says stop."""
    state = "interrupted"
    sweep.log.session("started")
    try:
        _train(sweep, place, signals)
        sweep.settle()
        if place.away is not None:
            place.away.drop_checkpoints(
                trial for trial, known in sweep.known.items() if known.state == "stopped"
            )
        sweep.note_exhaustion()
        if not sweep.has_work and "running" not in sweep.counts():
            state = "finished"
    finally:
        with suppress(StudyWriteError):
            sweep.log.session(state)


def _train(sweep: Sweep, place: Place, signals: Interrupts) -> None:
    """Train in one session of Ray, and in another where that is lost."""
    pauses = iter(BACKOFF_SECONDS)
    while True:
        ended = sweep.ended
        try:
            with _session(place, sweep.out) as folder, store_watched(partial(_give_up, sweep, signals)):
                signals.install()
                from archsearch.search.tuning import tune_trials

                tune_trials(sweep, place, folder, signals.reporter, signals.stop)
            return
        except SessionLost as error:
            if sweep.ended > ended:
                pauses = iter(BACKOFF_SECONDS)
            pause = next(pauses, None)
            if pause is None:
                message = f"{sweep.out}: {error}, time and again; the same command continues the sweep"
                raise SessionLost(message) from None
            sweep.log.note("warning", f"{error}; starting another in {pause:.0f} s")
            if signals.stop.wait(pause):
                return


def _give_up(sweep: Sweep, signals: Interrupts, how: str) -> None:
    """End the process where Ray is about to."""
    with suppress(StudyWriteError):
        sweep.log.note("error", how)
        sweep.log.session("interrupted")
    if signals.stop.is_set():
        signals.leave_at_once(INTERRUPTED, f"interrupted; the same command continues {sweep.out}")
    signals.leave_at_once(FAILED, f"{how}; the same command continues {sweep.out}")


@contextmanager
def _session(place: Place, run: Path) -> Iterator[Path]:
    """The place's session of Ray. Raises SessionLost where it does not start for no fault of the user."""
    with ExitStack() as stack:
        stack.callback(gc.enable)
        try:
            folder = stack.enter_context(place.session(run))
        except (ValueError, SessionLost):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SessionLost(f"Ray did not start ({one_line(str(error))})") from error
        stack.callback(_collect_nothing_more)
        yield folder


def _collect_nothing_more() -> None:
    """Before Ray's shutdown: where another thread collects a reference of its meanwhile, Ray's library ends
    the process."""
    gc.collect()
    gc.disable()
