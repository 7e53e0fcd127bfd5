"""A small process beside each worker, which ends it where it must: one that hangs in C code cannot itself.

It kills the worker when the driver lets go of the run's lock (Ray may take seconds to notice a kill), when
the worker holds more memory than its trial may, and when the trial's time is over; it leaves when the worker
does. Started by its path and without site-packages, so that it costs some milliseconds and 10 MiB: it imports
nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

VERDICT = "ended.json"
"""In the folder of a trial that was ended: its cause {kind, message}, until the driver has recorded it."""

SHARE_OF_MEMORY = 0.9
_LOOK_SECONDS = 0.1
_LOCK_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """What a trial may use: memory in bytes, seconds from now; None: as much as it wants."""

    memory: int | None = None
    seconds: float | None = None


class Guard:
    """The worker's end: starts the guard of this process and tells it which trial is being worked on.

    lock: the run's lock file, driver: the process that holds it. None where they may be on another machine:
    there it is Ray that ends what a driver leaves.
    """

    def __init__(self, lock: Path | None, driver: int):
        self._command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(lock or ""), str(driver)]
        self._process = self._start()

    def watch(self, folder: Path, limits: Limits) -> None:
        """The trial in `folder` begins, or goes on."""
        with contextlib.suppress(OSError):
            (folder / VERDICT).unlink(missing_ok=True)
        self._tell({"folder": str(folder), "memory": limits.memory, "seconds": limits.seconds})

    def rest(self) -> None:
        """No trial is being worked on."""
        self._tell({"folder": None, "memory": None, "seconds": None})

    def _start(self) -> subprocess.Popen[bytes]:
        # In a session of its own: a terminal's Ctrl-C is not meant for it.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, message: dict[str, object]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for _ in range(2):
            try:
                os.write(self._process.stdin.fileno(), line)  # type: ignore[union-attr]
                return
            except OSError:  # somebody killed it
                self._process = self._start()


def node_memory() -> int | None:
    """Bytes of memory of this machine, or of the control group (v2) where that has less."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def read_verdict(folder: Path) -> dict[str, str] | None:
    """The cause for which a guard ended the trial in `folder`; read once."""
    path = folder / VERDICT
    try:
        found: dict[str, str] = json.loads(path.read_text())
        path.unlink()
    except (OSError, ValueError):
        return None
    return found


class _Watch:
    """The guard's own process. Its parent is asked for at each look and never taken for the worker unseen: a
    worker that died before this process began leaves it another parent, which is none of its business."""

    def __init__(self, worker: int, lock: str, driver: int):
        self.worker = worker
        self.lock = lock
        self.driver = driver
        self.folder: str | None = None
        self.memory: int | None = None
        self.seconds: float | None = None
        self.deadline: float | None = None

    def run(self) -> None:
        next_look = 0.0
        unread = b""
        while os.getppid() == self.worker:
            if select.select([0], [], [], _LOOK_SECONDS)[0]:
                fresh = os.read(0, 65536)
                if not fresh:
                    return
                *lines, unread = (unread + fresh).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOCK_LOOK_SECONDS
                if self.lock and not _holds(self.lock, self.driver):
                    self._kill()
                    return
            if (cause := self._cause(now)) is not None:
                self._say(cause)
                self._kill()
                return

    def _take(self, message: dict[str, object]) -> None:
        self.folder, self.memory, self.seconds = (message[key] for key in ("folder", "memory", "seconds"))  # type: ignore[assignment]
        self.deadline = None if self.seconds is None else time.monotonic() + self.seconds

    def _cause(self, now: float) -> dict[str, str] | None:
        if self.deadline is not None and now > self.deadline:
            return {"kind": "time limit", "message": f"not done within {self.seconds:.3g} s"}
        if self.memory is None:
            return None
        held = _resident(self.worker)
        if held <= self.memory:
            return None
        message = f"its process held {held / 2**20:.0f} MiB; the limit is {self.memory / 2**20:.0f} MiB"
        return {"kind": "out of memory", "message": message}

    def _say(self, cause: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            partial = Path(f"{self.folder}/{VERDICT}.partial")
            partial.write_text(json.dumps(cause))
            os.replace(partial, f"{self.folder}/{VERDICT}")

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.worker, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be told."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _holds(lock: str, driver: int) -> bool:
    """Whether the process `driver` holds the run's lock."""
    try:
        fd = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).strip() == str(driver).encode()
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


if __name__ == "__main__":
    _Watch(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])).run()
