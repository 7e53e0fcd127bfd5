"""Showing a study while it runs: a dashboard on a terminal, plain lines elsewhere, `watch` for a bystander.

A reporter reads the study's files and nothing else, so the process that runs a sweep and one that watches it
from another terminal show the same.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import IO, Any, Protocol, Self, TextIO

from rich.console import Console

from archsearch.study import Study
from archsearch.ui.blocks import Block, clean
from archsearch.ui.dashboard import LEAST_HEIGHT, frame, render
from archsearch.ui.events import event_line, stamped
from archsearch.ui.screen import Screen
from archsearch.ui.units import duration, value

FRAME_SECONDS = 0.25
CLOCK_SECONDS = 1.0
LARGEST_SHARE = 0.05
"""Of a core, that the dashboard takes: after a dear frame the next one waits longer."""
_SUMMARY_EVERY = 8
_SAID = 500


class Reporter(Protocol):
    """What shows a study's course; usable as a context manager."""

    def update(self, force: bool = False) -> None:
        """Read what is new and show it; cheap enough to call in every turn of a loop."""

    def log(self, line: str) -> None:
        """Show a line that the record does not hold."""

    def close(self) -> None:
        """Show the final state and leave the terminal as it was found. Closing twice is harmless."""

    def __enter__(self) -> "Reporter": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveDashboard:
    """The dashboard on the alternate screen, redrawn in place at most four times a second when something
    happened, once a second for the clock; more rarely where that would take more than `LARGEST_SHARE`.

    What Python code writes to stdout or stderr meanwhile goes to the dashboard's log instead of across the
    frame. On leaving, however that comes about, the terminal is restored and the last frame printed to stay.
    A pickled dashboard keeps the run's folder alone and does nothing when called.
    """

    def __init__(self, study: Study, console: Console | None = None) -> None:
        self.study = study
        self.said: deque[tuple[float, str]] = deque(maxlen=_SAID)
        self._console: Console | None = console or Console(file=sys.stderr)
        self._screen: Screen | None = None
        self._redirects: contextlib.ExitStack | None = None
        self._clear()

    def _clear(self) -> None:
        self._size = (0, 0)
        self._shown = (0, 0, 0)
        self._drawn = self._looked = self._painted = self._rest = 0.0
        self._told = 0

    def __enter__(self) -> Self:
        if self._console is None or self._screen is not None:
            return self
        self._screen = Screen(self._console)
        self._redirects = contextlib.ExitStack()
        try:
            self._screen.open()
            self._redirects.enter_context(contextlib.redirect_stdout(_Lines(self.log, sys.stdout)))
            self._redirects.enter_context(contextlib.redirect_stderr(_Lines(self.log, sys.stderr)))
            self.update(force=True)
        except BaseException:
            # Ctrl-C during the first frame: `with` has not begun, so nobody else would restore the screen.
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, force: bool = False) -> None:
        """Follow the record and redraw; a resized terminal is redrawn at once."""
        if self._screen is None or self._console is None:
            return
        size = (self._console.width, self._console.height)
        now = time.monotonic()
        resized = force or size != self._size
        if not resized and now - self._looked < FRAME_SECONDS:
            return
        self._looked, began = now, time.thread_time()
        self.study.refresh()
        state = self._state()
        due = state != self._shown or now - self._drawn >= CLOCK_SECONDS
        if resized or (due and now - self._drawn >= self._rest):
            # Whatever else wrote to the terminal is covered once a second.
            whole = resized or now - self._painted >= CLOCK_SECONDS
            self._screen.draw(self._frame(), whole)
            self._size, self._shown, self._drawn = size, state, now
            self._painted = now if whole else self._painted
            self._rest = (time.thread_time() - began) / LARGEST_SHARE

    def log(self, line: str) -> None:
        """Add a line to the log panel."""
        if line.strip():
            self.said.append((time.time(), clean(line.rstrip())))
            self._told += 1

    def close(self) -> None:
        """Restore the terminal and print the last frame where it stays."""
        screen, self._screen = self._screen, None
        redirects, self._redirects = self._redirects, None
        if redirects is not None:
            redirects.close()
        if screen is None or self._console is None:
            return
        screen.close()
        with contextlib.suppress(ValueError, OSError):
            self.study.refresh()
        height = max(self._console.height - 1, LEAST_HEIGHT)
        self._console.print(render(self.study, self._console.width, height, list(self.said)))

    def _state(self) -> tuple[int, int, int]:
        """Grows whenever something besides the clock would look different."""
        return self.study.lines, sum(len(trial.curve) for trial in self.study.trials.values()), self._told

    def _frame(self) -> Block:
        assert self._console is not None
        return frame(self.study, self._console.width, max(self._console.height, 1), list(self.said))

    def __getstate__(self) -> dict[str, Any]:
        return {"run_dir": self.study.run_dir}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.study = Study(state["run_dir"])
        self.said = deque(maxlen=_SAID)
        self._console, self._screen, self._redirects = None, None, None
        self._clear()


class PlainReporter:
    """One plain line an event, for files, pipes and continuous integration; no colours, no control codes."""

    def __init__(self, study: Study, stream: IO[str] | None = None) -> None:
        self.study = study
        self._stream = stream
        self._seen = 0
        self._told = 0
        self._pending: list[dict[str, Any]] = list(study.timeline)

    def __enter__(self) -> "PlainReporter":
        self.update(force=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, force: bool = False) -> None:
        """Print what happened since the last call."""
        events = [*self._pending, *self.study.refresh()]
        self._pending = []
        for event in events:
            line = event_line(self.study, event)
            if line is not None:
                self._print(stamped(float(event.get("time", time.time())), line).plain)
            self._seen += event.get("event") == "trial" and event.get("state") == "complete"
        if self._seen - self._told >= _SUMMARY_EVERY:
            self._told = self._seen
            self._print(self._summary())

    def log(self, line: str) -> None:
        """Print a line with the time of day."""
        if line.strip():
            self._print(f"{time.strftime('%H:%M:%S')}  {clean(line.rstrip())}")

    def close(self) -> None:
        """Print what is left and how the study stands."""
        self.update()
        if self._told >= 0:
            self._told = -1
            self._print(self._summary())

    def _summary(self) -> str:
        study = self.study
        counts = ", ".join(f"{number} {state}" for state, number in study.counts().items()) or "none"
        best = [
            f"best {name} {value(trial.values[name])} ({trial.id})"
            for name in study.objectives
            if (trial := study.best(name))
        ]
        front = study.front()
        volume = [f"front of {len(front)}", f"hypervolume {value(study.hypervolume())}"] if front else []
        told = "; ".join([f"{len(study.ended)}/{study.total} trials ({counts})", *best, *volume])
        return clean(f"{study.header.name} after {duration(study.elapsed)}: {told}")

    def _print(self, line: str) -> None:
        print(line, file=self._stream or sys.stderr, flush=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"run_dir": self.study.run_dir}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Study(state["run_dir"]))  # type: ignore[misc]


def open_reporter(study: Study, console: Console | None = None, plain: bool | None = None) -> Reporter:
    """The dashboard where `console` (by default stderr) is a terminal, else or if `plain` plain lines."""
    console = console or Console(file=sys.stderr)
    if plain is None:
        plain = not console.is_terminal or console.is_dumb_terminal
    return PlainReporter(study, console.file) if plain else LiveDashboard(study, console)


def watch(
    run_dir: str | os.PathLike[str],
    interval: float = 0.5,
    console: Console | None = None,
    plain: bool | None = None,
) -> Study:
    """Follow a run through its files until nobody works on it any more, then return how it stands.

    A run that nobody works on is drawn once. Ctrl-C stops watching; the run itself is not touched.

    Raises:
        StudyError: the folder is no run, or its record is damaged.
    """
    study = Study.read(run_dir)
    console = console or Console(file=sys.stdout)
    if plain is None:
        plain = not console.is_terminal
    if not study.live and not plain:
        console.print(render(study, console.width, max(LEAST_HEIGHT, console.height - 1)))
        return study
    with contextlib.suppress(KeyboardInterrupt), open_reporter(study, console, plain) as reporter:
        while study.live:
            time.sleep(interval)
            reporter.update()
    return study


class _Lines(io.TextIOBase):
    """A text stream that hands every finished line to `say`; the file descriptor is the original stream's."""

    def __init__(self, say: Any, original: TextIO) -> None:
        self._say = say
        self._original = original
        self._rest = ""
        self._guard = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._original.fileno()

    def write(self, text: str) -> int:
        with self._guard:
            *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            self._say(line)
        return len(text)
