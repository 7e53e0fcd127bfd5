"""What is tried again after a while: trials whose worker was lost, and Ray itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

BACKOFF_SECONDS = (1.0, 4.0, 16.0)
"""Pauses before the retries of a trial whose worker was lost; there are as many retries as pauses. A session
of Ray that was lost is started again after the same pauses, counted anew once a trial has ended."""


class SessionLost(RuntimeError):
    """Ray is gone, its own processes killed, or does not start. Trials can go on in another session."""


class WaitingTrials:
    """Trials that wait to be tried again. Each keeps the place that it had among those that run."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[str]:
        return iter(self._due)

    def add(self, trial: str, seconds: float) -> None:
        """`trial` is due in so many seconds."""
        self._due[trial] = time.monotonic() + seconds

    def take_due(self) -> str | None:
        """A trial whose time has come, which waits no longer."""
        now = time.monotonic()
        for trial, due in self._due.items():
            if due <= now:
                del self._due[trial]
                return trial
        return None
