"""The writer of a study's record: one process at a time, one whole line at a time, each on disk."""

import contextlib
import errno
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from archsearch.study.schema import LOCK, RECORD, StudyBusy, StudyError, check_event

_LOCK_PATIENCE_SECONDS = 0.5


class StudyWriteError(OSError):
    """A run's folder could not be written: disk full, folder gone, no permission. cause: what the system
    said."""

    def __init__(self, message: str, cause: OSError | None = None):
        super().__init__(message)
        self.is_denied = cause is not None and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


class StudyLog:
    """Append-only writer of `RUN/study.jsonl`, holding the run's lock until closed.

    A last line without its newline was torn by a kill: opening moves it to `study.jsonl.torn` and says so in
    a note, so that the record is whole before anything follows it.

    Pickling keeps the path alone; an unpickled log is closed. (Ray Tune pickles callbacks.)
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        """Create or open the record of `run_dir`, which is made where it is missing.

        Raises:
            StudyError: another process is writing this run.
            StudyWriteError: the folder or its files cannot be written.
        """
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / RECORD
        self._guard = threading.Lock()
        self._lock_fd: int | None = None
        self._fd: int | None = None
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _acquire(self.run_dir / LOCK)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _sync_folder(self.run_dir)
            torn = _repair(self._fd, self.path)
        except OSError as error:
            self.close()
            message = f"{self.path}: cannot open the record for writing: {error.strerror or error}"
            raise StudyWriteError(message, error) from error
        except StudyError:
            self.close()
            raise
        if torn:
            self.note(
                "warning",
                f"{torn} bytes of an unfinished last line were moved to {RECORD}.torn: a run was killed",
            )

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Write one event and return it as written, with its `time` filled in and its values made JSON-safe.

        The line is on disk when this returns. After a failed write the record is cut back to whole lines.

        Raises:
            StudyError: the event lacks what its readers need.
            StudyWriteError: the disk refused, or the log is closed.
        """
        safe: dict[str, Any] = json_safe(dict(event))
        safe.setdefault("time", time.time())
        check_event(safe)
        line = json.dumps(safe, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._guard:
            if self._fd is None:
                raise StudyWriteError(f"{self.path}: the log is closed")
            _write_whole(self._fd, line, self.path)
        return safe

    def session(self, state: str) -> dict[str, Any]:
        """Record that this process started, finished or was interrupted."""
        return self.append({"event": "session", "state": state, "pid": os.getpid()})

    def trial(self, trial: str, state: str, **fields: Any) -> dict[str, Any]:
        """Record a trial's state with what is now known of it (the keys of `schema.TrialEvent`)."""
        return self.append({"event": "trial", "trial": trial, "state": state, **fields})

    def note(self, level: str, message: str) -> dict[str, Any]:
        """Record a line for the person watching; `level` is info, warning or error."""
        return self.append({"event": "note", "level": level, "message": message})

    def close(self) -> None:
        """Release the record and the run's lock. Closing twice is harmless."""
        for name in ("_fd", "_lock_fd"):
            fd = getattr(self, name)
            setattr(self, name, None)
            if fd is not None:
                os.close(fd)

    def __enter__(self) -> "StudyLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"run_dir": self.run_dir, "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _guard=threading.Lock(), _fd=None, _lock_fd=None)


def is_live(run_dir: str | os.PathLike[str]) -> bool:
    """Whether some process, this one included, holds the run's lock."""
    try:
        fd = os.open(Path(run_dir) / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        # The shared lock lasts for microseconds; `_acquire` is patient enough to outwait a reader's look.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def json_safe(value: Any) -> Any:
    """`value` as JSON can hold it: non-finite floats become None, NumPy scalars and arrays plain numbers.

    Raises:
        StudyError: something that has no JSON form.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return json_safe(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise StudyError(f"the record holds JSON; {type(value).__name__} {value!r} has no JSON form")


def _acquire(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                os.close(fd)
                who = f"process {holder}" if holder else "another process"
                raise StudyBusy(
                    f"{path.parent}: {who} is already running this study; wait for it, stop it "
                    "or choose another folder"
                ) from None
            time.sleep(0.02)
        except OSError:
            os.close(fd)
            raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _repair(fd: int, path: Path) -> int:
    """Move a torn last line aside; return its length in bytes, 0 where there was none."""
    size = os.fstat(fd).st_size
    tail = b""
    start = size
    while start > 0 and b"\n" not in tail:
        step = min(start, 65536)
        start -= step
        tail = os.pread(fd, step, start) + tail
    torn = tail[tail.rfind(b"\n") + 1 :]
    if torn:
        aside = os.open(path.with_name(path.name + ".torn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(aside, torn + b"\n")
            os.fsync(aside)
        finally:
            os.close(aside)
        os.ftruncate(fd, size - len(torn))
        os.fsync(fd)
    return len(torn)


def _write_whole(fd: int, line: bytes, path: Path) -> None:
    before = os.fstat(fd).st_size
    try:
        written = os.write(fd, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written")
        os.fsync(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        reason = error.strerror or error
        raise StudyWriteError(f"{path}: cannot append to the record: {reason}", error) from error


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its bytes."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
