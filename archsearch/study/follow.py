"""Reading a growing file of JSON lines, whole lines only."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archsearch.study.schema import RECORD, StudyError


@dataclass
class LineFollower:
    """Reads what was appended to `path` since the last read, leaving an unfinished last line for the next.

    `restarted` is true after a read that found another or a shorter file and began from its start.
    """

    path: Path
    lines: int = 0
    restarted: bool = False
    _offset: int = 0
    _inode: int | None = field(default=None, repr=False)

    def read(self) -> list[tuple[int, bytes]]:
        """New whole lines as (line number from 1, bytes without the newline); none where there is no file."""
        self.restarted = False
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self._offset or self._inode not in (None, status.st_ino):
                    self._offset, self.lines, self.restarted = 0, 0, True
                self._inode = status.st_ino
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        first = self.lines + 1
        found = list(enumerate(whole.split(b"\n")[:-1], start=first))
        self.lines += len(found)
        return found


def strict_objects(path: Path, lines: list[tuple[int, bytes]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line as a JSON object.

    Raises:
        StudyError: a whole line is no JSON object; the message names the file and the line.
    """
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{path}:{number}: not a JSON object: {error}") from error
        if not isinstance(value, dict):
            raise StudyError(f"{path}:{number}: expected a JSON object, found {type(value).__name__}")
        yield number, value


def lenient_objects(lines: list[tuple[int, bytes]]) -> Iterator[dict[str, Any]]:
    """Each line that is a JSON object. A metrics file may hold a torn one: a killed trial appends to it."""
    for _, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def line_id(first_line: bytes) -> str:
    """Tells runs apart: the record's first line, its time included, never changes."""
    return hashlib.sha256(first_line).hexdigest()[:8]


def record_id(run_dir: Path) -> str:
    """`line_id` of a run's record."""
    with (run_dir / RECORD).open("rb") as file:
        return line_id(file.readline().rstrip(b"\n"))
