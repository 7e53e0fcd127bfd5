"""Run in a mount namespace of its own: a sweep on a disk that is full, and read-only, until there is room.

    tiny_disk.py FOLDER SPACE

Mounts a small file system on FOLDER and prints, as JSON, what each run of the same command came to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOM = ("200k", "450k", "700k", "950k")


def main(folder: Path, space: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM[0]}", "tmpfs", str(folder)], check=True)
    found = []
    for size in ROOM:
        remount(folder, f"size={size}")
        found.append(sweep(folder / "run", space))
    remount(folder, "ro,size=950k")
    found.append(sweep(folder / "run", space))
    remount(folder, "rw,size=64m")
    found.append(sweep(folder / "run", space))
    print(json.dumps(found))


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def sweep(run: Path, space: str) -> dict[str, Any]:
    """The command once: its exit code, what it said, and what there was afterwards."""
    command = [sys.executable, "-m", "archsearch", "sweep", space, "--out", str(run), "--no-dashboard"]
    done = subprocess.run(command, capture_output=True, text=True)
    record = run / "study.jsonl"
    return {
        "code": done.returncode,
        "told": done.stderr,
        "record": record.read_text() if record.exists() else "",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
