"""The guard ends its process whatever that does; the keeper ends what a driver leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archsearch.search.guard import VERDICT, node_memory, read_verdict
from archsearch.search.keeper import SESSION
from archsearch.search.space import read_space
from archsearch.spec import SpecError
from archsearch.study import StudyLog

PATIENCE_SECONDS = 60.0

WORKER = """
import ctypes, sys, time
from pathlib import Path
from archsearch.search.guard import Guard, Limits
lock, driver, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
guard = Guard(lock, driver)
print(guard._process.pid, flush=True)
"""
HANGS = "guard.watch(folder, Limits(seconds=0.3)); ctypes.PyDLL(None).sleep(600)  # which keeps the GIL"
ALLOCATES = (
    "guard.watch(folder, Limits(memory=200 << 20)); held = []\nwhile True: held.append(b'x' * (8 << 20))"
)
RESTS = "guard.watch(folder, Limits(seconds=0.3)); guard.rest(); time.sleep(1.5)"
WAITS = "guard.watch(folder, Limits()); time.sleep(600)"
GUARD_DIES = "import os; os.kill(guard._process.pid, 9); guard._process.wait(); " + HANGS


@pytest.fixture
def log(tmp_path: Path) -> StudyLog:
    return StudyLog(tmp_path / "run")


def work(log: StudyLog, what: str) -> "subprocess.Popen[str]":
    arguments = [str(log.run_dir / ".lock"), str(os.getpid()), str(log.run_dir)]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER + what, *arguments], stdout=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


STEPPARENT = """
import subprocess, sys
from archsearch.search import guard
ended = subprocess.Popen([sys.executable, "-c", ""])
ended.wait()
command = [sys.executable, guard.__file__, str(ended.pid), "/no/lock", "1"]
left = subprocess.Popen(command, stdin=subprocess.PIPE)
left.stdin.write(b'{"folder": "/", "memory": 1, "seconds": 0}\\n')
left.stdin.flush()
print(left.wait(), flush=True)
"""
"""A guard whose worker died before it began; by what it is told, its lock and its limits, it would kill."""


def test_a_guard_does_nothing_to_a_parent_that_is_not_its_worker() -> None:
    stepparent = subprocess.run([sys.executable, "-c", STEPPARENT], stdout=subprocess.PIPE, text=True)
    assert (stepparent.returncode, stepparent.stdout) == (0, "0\n")


@pytest.mark.parametrize(
    ("what", "kind"), [(HANGS, "time limit"), (ALLOCATES, "out of memory"), (GUARD_DIES, "time limit")]
)
def test_a_worker_beyond_its_limits_is_killed_and_the_cause_said(log: StudyLog, what: str, kind: str) -> None:
    worker = work(log, what)
    assert worker.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    found = read_verdict(log.run_dir)
    assert found is not None
    assert found["kind"] == kind
    assert not (log.run_dir / VERDICT).exists()
    assert read_verdict(log.run_dir) is None


def test_limits_end_with_their_trial(log: StudyLog) -> None:
    assert work(log, RESTS).wait(PATIENCE_SECONDS) == 0


def test_a_worker_ends_when_the_driver_lets_go_of_the_run(log: StudyLog) -> None:
    worker = work(log, WAITS)
    assert worker.stdout is not None
    guard = int(worker.stdout.readline())
    assert worker.poll() is None
    log.close()
    assert worker.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    until(lambda: not lives(guard))
    assert read_verdict(log.run_dir) is None


def test_a_guard_leaves_with_its_worker(log: StudyLog) -> None:
    worker = work(log, WAITS)
    assert worker.stdout is not None
    guard = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    until(lambda: not lives(guard))


def test_a_machine_has_memory() -> None:
    found = node_memory()
    assert found is not None
    assert found > 1 << 28


DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from archsearch.search.keeper import SESSION, kept
folder = Path(sys.argv[1])
with kept(folder):
    log = open(folder / "log", "w")
    sleep, mark = ["sleep", "600"], {SESSION: str(folder)}
    marked = subprocess.Popen(sleep, env=os.environ | mark, start_new_session=True)
    writes = subprocess.Popen(sleep, stdout=log, start_new_session=True)
    print(marked.pid, writes.pid, flush=True)
    if sys.argv[2] == "killed":
        time.sleep(600)
print(log.closed, flush=True)
"""


@pytest.mark.parametrize("how", ["killed", "leaves"])
def test_what_belongs_to_a_session_ends_with_its_driver(tmp_path: Path, how: str) -> None:
    """And nothing else: neither the driver itself, with a file of the session open, nor who is next to it."""
    folder, other = tmp_path / "session", tmp_path / "session2"
    folder.mkdir()
    bystander = subprocess.Popen(["sleep", "600"], env=os.environ | {SESSION: str(other)})
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    marked, writes = map(int, driver.stdout.readline().split())
    if how == "killed":
        driver.kill()
    until(lambda: not lives(marked) and not lives(writes) and not folder.exists())
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    if how == "leaves":
        assert driver.stdout.readline() == "False\n"
        assert driver.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("resources", "memory", "seconds"),
    [
        ("{memory: 4GiB, time_limit: 10m}", 4 << 30, 600.0),
        ("{memory: 1.5GB, time_limit: 30s}", 1_500_000_000, 30.0),
        ("{memory: 5000000, time_limit: 90}", 5_000_000, 90.0),
        ("{time_limit: 1.5h}", None, 5400.0),
        ("{}", None, None),
    ],
)
def test_limits_as_people_write_them(
    tmp_path: Path, resources: str, memory: int | None, seconds: float | None
) -> None:
    found = read_space(space(tmp_path, resources)).settings.resources
    assert (found.memory, found.time_limit) == (memory, seconds)
    # A limit may be changed while a run goes on.
    assert read_space(space(tmp_path, resources)).hash == read_space(space(tmp_path, "{concurrent: 2}")).hash


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("{time_limit: 10y}", "resources.time_limit: expected a time such as 30s, 10m or 2h, found '10y'"),
        ("{time_limit: 0s}", "resources.time_limit: must be greater than 0, found"),
        ("{memory: lots}", "resources.memory: expected a number such as 4M, found 'lots'"),
        ("{memory: 0.5}", "resources.memory: expected a whole number, found 0.5"),
    ],
)
def test_limits_that_are_none(tmp_path: Path, resources: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_space(space(tmp_path, resources))
    assert said in str(refused.value)


def space(tmp_path: Path, resources: str) -> Path:
    text = (Path(__file__).parent / "spaces/tiny.yaml").read_text()
    (tmp_path / "space.yaml").write_text(text.replace("{concurrent: 2}", resources))
    return tmp_path / "space.yaml"
