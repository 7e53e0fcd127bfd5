"""Real sweeps through Ray, each in a process of its own: killed, interrupted, failing, and always quiet."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archsearch.experiment.spec import load_experiment
from archsearch.search.driver import run_sweep
from archsearch.search.ray_session import MARK, PREFIX
from archsearch.search.retries import BACKOFF_SECONDS
from archsearch.search.space import load_space
from archsearch.spec import SpecError
from archsearch.study import Study

SPACES = Path(__file__).parent / "spaces"
PATIENCE_SECONDS = 120.0
ENDS = ("complete", "stopped", "failed")

RUN = """
import sys
from pathlib import Path
from archsearch.search.driver import run_sweep
from archsearch.search.space import load_space
sys.exit(run_sweep(load_space(sys.argv[1]), Path(sys.argv[2])).exit_code)
"""

LOSES_ITS_RAYLET = """
import os, signal
from archsearch.search.ray_session import ENVIRONMENT
os.environ |= ENVIRONMENT  # before Ray is imported
from archsearch.search import tuning

take_back = tuning._Bridge.take_back
once = iter([True])

def late(bridge, tune_id, outcome):
    if next(once, False):
        from ray._private import worker
        for raylet in worker._global_node.all_processes["raylet"]:
            os.kill(raylet.process.pid, signal.SIGKILL)
            raylet.process.wait()
    take_back(bridge, tune_id, outcome)

tuning._Bridge.take_back = late
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a sweep in a session of its own, as a terminal would; nothing of it outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(space: str, run: Path, before: str = "") -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", before + RUN, str(SPACES / space), str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code; whatever it printed is a failure of the test."""
    printed = process.communicate(timeout=PATIENCE_SECONDS)
    assert printed == (b"", b"")
    return process.returncode


def events(run: Path, kind: str = "trial") -> list[dict[str, Any]]:
    path = run / "study.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def wait_for(condition: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)
    return found


def states(run: Path, state: str) -> list[str]:
    return [event["trial"] for event in events(run) if event["state"] == state]


def steps(run: Path, trial: str) -> list[int]:
    lines = (run / "trials" / trial / "metrics.jsonl").read_text().splitlines()
    return [point["step"] for point in map(json.loads, lines) if "loss" in point]


def assert_whole(run: Path, trials: int) -> Study:
    """A finished run: every trial ended once, its files there, the front as the record has it."""
    study = Study.read(run)
    assert study.status == "finished"
    counts = study.counts()
    assert sum(counts.get(state, 0) for state in ENDS) == trials
    assert "running" not in counts
    completed = states(run, "complete")
    assert len(completed) == len(set(completed))
    for trial in study.trials.values():
        experiment = load_experiment(run / "trials" / trial.id / "spec.yaml")
        assert experiment.hash == trial.hash
    for name in completed:
        found = steps(run, name)
        assert found == sorted(set(found))
    assert {path.stem for path in (run / "front").iterdir()} == {trial.id for trial in study.front()}
    assert not (run / MARK).exists()
    return study


def test_killed_at_any_moment_and_started_again(start: Start, tmp_path: Path) -> None:
    """kill -9 when a trial has ended and others run: nothing finished is lost, nothing is trained twice.

    The space holds candidates that diverge and some whose text is shorter than a context: failed trials, with
    their causes.
    """
    run = tmp_path / "run"
    first = start("failing.yaml", run)
    wait_for(lambda: states(run, "complete"))
    # A checkpoint of another trial shows that one is half way.
    half_way = wait_for(lambda: list(run.glob("trials/*/checkpoint.pt")) or first.poll() is not None)
    first.kill()
    assert first.communicate() == (b"", b"")
    assert isinstance(half_way, list), "the sweep was over too soon to be killed"
    before = (run / "study.jsonl").read_bytes()
    left_behind = Path((run / MARK).read_text())

    assert ended(start("failing.yaml", run)) == 3
    assert (run / "study.jsonl").read_bytes().startswith(before)
    assert not left_behind.exists()
    study = assert_whole(run, trials=6)
    assert [session.state for session in study.sessions] == ["started", "finished"]
    failed = {t.cause["kind"]: t for t in study.trials.values() if t.state == "failed" and t.cause}
    assert failed.keys() == {"non-finite loss", "ValueError"}
    assert failed["non-finite loss"].cause["step"] >= 1
    for trial in failed.values():
        assert "Traceback" in (run / "trials" / trial.id / "error.txt").read_text()
        assert "\n" not in trial.cause["message"]

    # Once finished, the same command finds nothing to do.
    finished = (run / "study.jsonl").read_bytes()
    assert ended(start("failing.yaml", run)) == 3
    assert (run / "study.jsonl").read_bytes() == finished


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_trials_write_their_checkpoints(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches the whole process group, Ray's daemons included, as on a terminal."""
    run = tmp_path / "run"
    process = start("long.yaml", run)
    wait_for(lambda: len([p for p in run.glob("trials/*/metrics.jsonl") if p.stat().st_size]) == 2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert ended(process) == 130
    study = Study.read(run)
    assert study.status == "interrupted"
    assert sorted(states(run, "running")) == ["0000", "0001"]
    assert len(list(run.glob("trials/*/checkpoint.pt"))) == 2
    assert not list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/session_*_{process.pid}"))


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("long.yaml", run)
    wait_for(lambda: states(run, "running"))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 130
    assert Study.read(run).status == "interrupted"


@pytest.mark.slow
def test_a_trial_whose_worker_dies_is_tried_again(start: Start, tmp_path: Path) -> None:
    """And again after the driver was killed too, but not for ever."""
    run = tmp_path / "run"
    process = start("long.yaml", run)
    for times in range(len(BACKOFF_SECONDS) + 1):
        victim = wait_for(lambda: {trial: worker for worker, trial in workers(run)}.get("0000"))
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda times=times: len([e for e in events(run) if "retries" in e or "cause" in e]) > times)
        if times == 1:
            process.kill()
            process.communicate()
            process = start("long.yaml", run)
    study = Study.read(run)
    assert study.trials["0000"].state == "failed"
    assert study.trials["0000"].retries == len(BACKOFF_SECONDS)
    assert study.trials["0000"].cause is not None
    assert study.trials["0000"].cause["kind"] == "worker died"
    assert study.trials["0001"].state == "running"
    assert len([note for note in study.notes if "trial 0000: its worker was lost" in note["message"]]) == 3
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_lost_store_ends_the_sweep_with_a_line_and_the_same_command_continues(
    start: Start, tmp_path: Path
) -> None:
    """Ray would end the process a minute later, with its own words."""
    run = tmp_path / "run"
    process = start("tiny.yaml", run)
    wait_for(lambda: next(workers(run), None))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (store,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "gcs_server\n"]
    os.kill(int(store), signal.SIGKILL)
    line = f"Ray's gcs_server ended with status -9; the same command continues {run}\n"
    assert process.communicate(timeout=PATIENCE_SECONDS) == (b"", line.encode())
    assert process.returncode == 1
    assert Study.read(run).status == "interrupted"
    assert ended(start("tiny.yaml", run)) == 0
    assert_whole(run, trials=4)


@pytest.mark.slow
def test_a_raylet_lost_while_a_result_is_handled_costs_nothing(start: Start, tmp_path: Path) -> None:
    """Tune wraps what is raised there in an error of its own, twice over."""
    run = tmp_path / "run"
    process = start("tiny.yaml", run, LOSES_ITS_RAYLET)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (0, b"", b"")
    study = assert_whole(run, trials=4)
    assert [note["message"] for note in study.notes if note["level"] == "warning"] == [
        "Ray's raylet ended with status -9; starting another in 1 s"
    ]
    assert not any(trial.retries for trial in study.trials.values())


def workers(run: Path) -> Iterator[tuple[int, str]]:
    """(process id, trial) of every process that holds a trial's lock (/proc/locks lists them by inode)."""
    inodes = {path.stat().st_ino: path.parent.name for path in run.glob("trials/*/.lock")}
    for line in Path("/proc/locks").read_text().splitlines():
        found = re.search(r"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\w+:\w+:(\d+)", line)
        if found is not None and int(found[2]) in inodes:
            yield int(found[1]), inodes[int(found[2])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_rungs_survive_kills(start: Start, tmp_path: Path, kind: str) -> None:
    """Killed three times on its way; every trial passes each rung once, and ends once."""
    text = (SPACES / "halving.yaml").read_text()
    scheduler = f"scheduler: {{halving: {{type: {kind}, eta: 3, start: 0.112}}}}"
    space = tmp_path / "space.yaml"
    space.write_text(text.replace("scheduler: halving", scheduler))
    run = tmp_path / "run"
    for rungs in (1, 4, 7):
        process = start(str(space), run)
        wait_for(lambda rungs=rungs: len([e for e in events(run) if "rung" in e]) >= rungs)
        process.kill()
        process.communicate()
    assert ended(start(str(space), run)) == 0
    study = Study.read(run)
    assert study.status == "finished"
    assert study.counts().keys() == {"complete", "stopped"}
    assert sum(study.counts().values()) == 8
    for trial in study.trials.values():
        assert [rung["level"] for rung in trial.rungs] == list(range(len(trial.rungs)))
        ends = [e for e in events(run) if e["trial"] == trial.id and e["state"] in ("complete", "stopped")]
        assert len(ends) == 1
        assert len(trial.rungs) == 2 or trial.state == "stopped"
    assert all(trial.spread.keys() == {"recall", "perplexity"} for trial in study.complete)
    assert not list(run.rglob("checkpoint.pt"))


def test_text_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    text = (SPACES / "failing.yaml").read_text()
    space.write_text(text.replace("tests/search/spaces/short.jsonl", "no/such/text"))
    with pytest.raises(SpecError, match=r"space\.yaml:12:\d+: data\.sources\.short\.text: no/such/text"):
        run_sweep(load_space(space), tmp_path / "run")
    assert not (tmp_path / "run").exists()
