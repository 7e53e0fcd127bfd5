"""A small process beside the driver, which clears up after it however it ends.

Ray's agents can outlive a killed driver by minutes. Once the driver is gone, or done with a session of Ray,
what still belongs to the session is killed and the session's folder removed: what carries its mark in its
environment, or has a file of its folder open, as all of Ray's processes have their logs (those that set their
title overwrite their environment). Run as the guards are (`archsearch.search.guard`): standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SESSION = "ARCHSEARCH_SESSION"
"""Environment variable of what a session of Ray starts: the session's folder."""

_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.05


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Have what belongs to the session in `folder` killed, and it removed, at the end or at our death."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_SECONDS)


def _left(folder: str, spared: set[int]) -> list[int]:
    """The session's processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) not in spared and _belongs(entry, folder):
                found.append(int(entry.name))
    return found


def _belongs(process: Path, folder: str) -> bool:
    if f"{SESSION}={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
        return True
    for open_file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(open_file).startswith(f"{folder}/"):
                return True
    return False


def _clear_up(folder: str, driver: int) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while (left := _left(folder, {driver, os.getpid()})) and time.monotonic() < give_up:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    while os.read(0, 1):  # until the driver lets go of the other end
        pass
    _clear_up(sys.argv[1], int(sys.argv[2]))
