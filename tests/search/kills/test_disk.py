"""A disk that is full or read-only, and a run that another process works on: one line, and nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archsearch.study import StudyLog

from ..test_driver import ENDS

HERE = Path(__file__).parent
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def has_own_mounts() -> bool:
    try:
        return subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def space(tmp_path: Path) -> Path:
    text = (HERE / "sequential.yaml").read_text()
    (tmp_path / "space.yaml").write_text(text.replace("trials: 36", "trials: 8"))
    return tmp_path / "space.yaml"


def trials(record: str) -> list[dict[str, Any]]:
    """The trials' events of a record; every line of it must be whole."""
    assert record.endswith("\n") or not record
    return [event for event in map(json.loads, record.splitlines()) if event["event"] == "trial"]


@pytest.mark.slow
@pytest.mark.skipif(not has_own_mounts(), reason="needs mount namespaces")
def test_a_full_disk_ends_the_sweep_and_room_continues_it(tmp_path: Path, space: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = [sys.executable, str(HERE / "tiny_disk.py"), str(disk), str(space)]
    done = subprocess.run([*OWN_MOUNTS, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *full, read_only, last = json.loads(done.stdout)
    for run in full:
        assert run["code"] == 1, run["told"]
        line = run["told"].splitlines()[-1]
        assert line.startswith(f"{disk}/run/")
        assert "No space left on device" in line
    assert read_only["code"] == 2
    assert read_only["told"] == (
        f"{disk}/run/study.jsonl: cannot open the record for writing: Read-only file system\n"
    )
    assert last["code"] == 0, last["told"]
    for run in (*full, read_only, last):
        assert "Traceback" not in run["told"]
        assert last["record"].startswith(run["record"])
        assert not [event for event in trials(run["record"]) if event["state"] == "failed"]
    ends = [event["trial"] for event in trials(last["record"]) if event["state"] in ENDS]
    assert ends == [f"{trial:04d}" for trial in range(8)]


def test_a_run_that_is_worked_on_is_refused(tmp_path: Path, space: Path) -> None:
    log = StudyLog(tmp_path / "run")
    command = [sys.executable, "-m", "archsearch", "sweep", str(space), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is already running this study; wait for it, stop it or choose another folder" in done.stderr
    log.close()
