"""What SIGINT and SIGTERM do to a sweep: the first asks it to end, the second ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from archsearch.search.ray_session import clear_up

INTERRUPTED = 130
_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Closing(Protocol):
    """Something that leaves the terminal as it was found."""

    def close(self) -> None: ...


class Interrupts:
    """The handlers of a sweep over the run in `run`. reporter: closed before the process is left at once."""

    def __init__(self, run: Path, stop: threading.Event):
        self.run = run
        self.stop = stop
        self.reporter: Closing | None = None

    def install(self) -> None:
        """Take the signals; Ray's start replaces the handler of SIGTERM, so again after that. They belong to
        the main thread: a sweep in another leaves them alone."""
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                signal.signal(number, self._handle)

    def leave_at_once(self, code: int, message: str = "") -> None:
        """End the process, with a line on stderr. Workers end with the run's lock, Ray's daemons with this
        process."""
        if self.reporter is not None:
            self.reporter.close()
        if message:
            print(message, file=sys.stderr, flush=True)
        clear_up(self.run)
        os._exit(code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            self.leave_at_once(INTERRUPTED)
        self.stop.set()


@contextmanager
def interrupts(run: Path, stop: threading.Event) -> Iterator[Interrupts]:
    """Let signals set `stop`, and a second one end the process; afterwards they do what they did before."""
    found = Interrupts(run, stop)
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    found.install()
    try:
        yield found
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
