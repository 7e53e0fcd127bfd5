"""Kills, one after the other, on one sweep; the same command again after each that ended it.

What is asserted of any run afterwards is in `assert_unharmed`; what each kill is asserted of, here.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from archsearch.experiment.spec import load_experiment
from archsearch.search.retries import BACKOFF_SECONDS
from archsearch.search.space import load_space
from archsearch.study import Study

from ..test_driver import ENDS, events, workers
from ..test_storage import assert_agrees
from .counted import WORKED

HERE = Path(__file__).parent
PATIENCE_SECONDS = 180.0
ORPHANS_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 1.5
EARLY_SECONDS = 8.0
"""About as long as a sweep takes to start: kills at any time within it hit every stage of that."""
ENDLESS = 100_000
"""Trials while there are kills to come: however quick the machine, each finds a sweep at work."""
ATTEMPTS = 10
"""At one kill, where there was nothing to kill at its moment: a worker between two trials."""

TOLD = re.compile(r"\d\d:\d\d:\d\d  |\w+ after \d|interrupted; the same command continues ")
"""All that a sweep may say on stderr: events, where it stands, how it goes on. No word of an exception."""

Process = tuple[int, str]
"""Its id and when it started: ids are given again."""


class Victim:
    """A sweep over `space` in the folder `run`, and what is done to it.

    trials: in all, once it has been left to finish. shots: workers that were sent a SIGKILL.
    """

    def __init__(self, space: str, run: Path, seed: int):
        self.space = HERE / space
        self.run = run
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.codes: list[int] = []
        self.trials = ENDLESS
        self.shots = 0
        self.output = run.with_name(run.name + ".out")
        self.errors = run.with_name(run.name + ".err")
        self.driver: subprocess.Popen[bytes] | None = None
        self._family: set[Process] = set()
        self._finished: dict[str, tuple[Any, ...]] = {}

    def suffer(self, kill: str) -> None:
        """One kill, at a random moment; the sweep is started where it does not run."""
        for _ in range(ATTEMPTS):
            if self._hit(kill):
                self.done[kill] += 1
                return
        raise AssertionError(f"{kill}: found nothing to kill, {ATTEMPTS} times: {self._told()}")

    def _hit(self, kill: str) -> bool:
        driver = self._running()
        give_up = time.monotonic() + PATIENCE_SECONDS
        wait = self.random.uniform(0, EARLY_SECONDS if self.random.random() < 0.25 else LONGEST_PAUSE_SECONDS)
        needs_worker = kill in ("worker", "hang") or wait <= LONGEST_PAUSE_SECONDS
        while not (self._locked(driver) and (not needs_worker or any(workers(self.run)))):
            assert time.monotonic() < give_up, f"{kill}: waited in vain"
            if driver.poll() is not None:
                return False
            time.sleep(0.01)
        self._look()
        time.sleep(wait)
        return driver.poll() is None and bool(getattr(self, f"_{kill}")(driver))

    def finish(self, trials: int = 0) -> None:
        """Run the command until there is nothing left to do: `trials`, or the space's, or as many as have
        begun, whichever is most."""
        if self.driver is not None and self.driver.poll() is None:
            self._interrupt(self.driver)
        begun = {event["trial"] for event in events(self.run) if event["state"] == "running"}
        self.trials = max(trials, load_space(self.space).search.trials, len(begun))
        for _ in range(5):
            driver = self._running()
            code = self._ended(driver)
            if code in (0, 3):
                break
        assert Study.read(self.run).status == "finished", self._told()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.driver is not None and self.driver.poll() is None:
            return self.driver
        if self.driver is not None:
            self._ended(self.driver)
        self._look()
        command = [sys.executable, str(HERE / "counted.py"), "sweep", str(self.space), "--no-dashboard"]
        with open(self.output, "ab") as output, open(self.errors, "ab") as errors:
            self.driver = subprocess.Popen(
                [*command, "--out", str(self.run), "--trials", str(self.trials)],
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        return self.driver

    def _ended(self, driver: subprocess.Popen[bytes]) -> int:
        while driver.poll() is None:
            self._look()
            time.sleep(0.2)
        if driver is self.driver:
            self.codes.append(driver.returncode)
            self.driver = None
        return driver.returncode

    def _locked(self, driver: subprocess.Popen[bytes]) -> bool:
        try:
            return int((self.run / ".lock").read_text()) == driver.pid
        except (OSError, ValueError):
            return False

    def _look(self) -> None:
        """Note the processes that there are, and the files of trials that have finished."""
        if self.driver is not None:
            self._family |= set(family(self.driver.pid))
        for event in events(self.run):
            if event["state"] == "complete":
                self._finished.setdefault(event["trial"], self._files(event["trial"]))

    def _files(self, trial: str) -> tuple[Any, ...]:
        """When and what a trial's training left."""
        folder = self.run / "trials" / trial
        stats = [(folder / name).stat() for name in ("weights.safetensors", "metrics.jsonl", WORKED)]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _told(self) -> str:
        return self.errors.read_text()[-2000:]

    # The kills. Each says whether there was something to kill.

    def _driver(self, driver: subprocess.Popen[bytes]) -> bool:
        driver.kill()
        return self._ended(driver) == -signal.SIGKILL

    def _worker(self, driver: subprocess.Popen[bytes]) -> bool:
        """One that has not been killed so often that its trial would fail for it, and whose trial did not end
        while we aimed."""
        lost = self._lost()
        found = [(pid, trial) for pid, trial in workers(self.run) if lost.count(trial) < len(BACKOFF_SECONDS)]
        if not found:
            return False
        victim, trial = found[0]
        self.shots += 1
        os.kill(victim, signal.SIGKILL)
        self._wait(lambda: self._lost() != lost or trial in self._ends())
        return self._lost() != lost

    def _hang(self, driver: subprocess.Popen[bytes]) -> bool:
        """A stopped process does nothing any more, not even in other threads of its own."""
        found = list(workers(self.run))
        if not found:
            return False
        victim, trial = found[0]
        os.kill(victim, signal.SIGSTOP)
        self._wait(lambda: trial in self._ends())
        if self._ends()[trial] == "time limit":
            return True
        os.kill(victim, signal.SIGCONT)  # its trial ended while we aimed
        return False

    def _raylet(self, driver: subprocess.Popen[bytes]) -> bool:
        raylets = [pid for pid, _ in family(driver.pid) if _name(pid) == "raylet"]
        for pid in raylets:
            os.kill(pid, signal.SIGKILL)
        return bool(raylets)

    def _terminate(self, driver: subprocess.Popen[bytes]) -> bool:
        return self._interrupted(driver, lambda: driver.terminate())

    def _interrupt(self, driver: subprocess.Popen[bytes]) -> bool:
        """Ctrl-C on a terminal: to the whole process group, Ray's daemons included."""
        return self._interrupted(driver, lambda: os.killpg(driver.pid, signal.SIGINT))

    def _interrupt_twice(self, driver: subprocess.Popen[bytes]) -> bool:
        def twice() -> None:
            os.killpg(driver.pid, signal.SIGINT)
            time.sleep(self.random.uniform(0, 0.5))
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGINT)

        return self._interrupted(driver, twice)

    def _interrupted(self, driver: subprocess.Popen[bytes], how: Callable[[], None]) -> bool:
        how()
        code = self._ended(driver)
        assert code in (0, 3, 130), (code, self._told())
        return code == 130

    def _wait(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < give_up, "waited in vain"
            self._look()
            time.sleep(0.1)

    def _lost(self) -> list[str]:
        """The trial of every worker that was lost."""
        return [event["trial"] for event in events(self.run) if "retries" in event]

    def _ends(self) -> dict[str, str]:
        """How every trial that has ended did: its cause, or its state."""
        found = [event for event in events(self.run) if event["state"] in ENDS]
        return {event["trial"]: event.get("cause", {}).get("kind", event["state"]) for event in found}

    # What must be so afterwards.

    def assert_unharmed(self, *, failures: bool = False) -> Study:
        """No finished trial lost or repeated, none left running, the storage as the record, nobody left, and
        no word of an error."""
        left = self._orphans()
        assert not left, left
        study = Study.read(self.run)
        counts = study.counts()
        assert sum(counts.get(state, 0) for state in ENDS) == self.trials, counts
        assert "running" not in counts
        assert failures or "failed" not in counts, [t.cause for t in study.trials.values() if t.cause]
        ends = Counter(event["trial"] for event in events(self.run) if event["state"] in ENDS)
        assert set(ends.values()) == {1}
        for name, files in self._finished.items():
            assert study.trials[name].state == "complete"
            assert self._files(name) == files, f"{name} was trained after it had finished"
        for trial in study.complete:
            assert_trained_once(self.run, trial.id)
        assert_agrees(self.run, load_space(self.space))
        strange = [line for line in self.errors.read_text().splitlines() if not TOLD.match(line)]
        assert not strange, strange
        return study

    def _orphans(self) -> list[str]:
        """Processes of any of the sweeps that live on, with as much time to end as they may have."""
        give_up = time.monotonic() + ORPHANS_SECONDS
        while left := [f"{pid} {_name(pid)}" for pid, start in self._family if _started(pid) == start]:
            if time.monotonic() > give_up:
                break
            time.sleep(0.1)
        return left


def assert_trained_once(run: Path, trial: str) -> None:
    """Every step was taken, and again only those after the last checkpoint of a training that was cut off."""
    folder = run / "trials" / trial
    experiment = load_experiment(folder / "spec.yaml")
    points = [json.loads(line) for line in (folder / WORKED).read_text().splitlines()]
    steps = Counter(point["step"] for point in points if "loss" in point)
    assert set(steps) == set(range(1, experiment.training.steps + 1))
    sessions = sum(event["state"] == "running" for event in events(run) if event["trial"] == trial)
    repeated = sum(steps.values()) - len(steps)
    assert repeated <= (sessions - 1) * experiment.training.checkpoint_every, (trial, repeated, sessions)


def family(pid: int) -> Iterator[Process]:
    """A process and all that it started, and they."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        found = waiting.pop()
        waiting += children.get(found, [])
        if (start := _started(found)) is not None:
            yield found, start


def _started(pid: int) -> str | None:
    """When a process started; None where it has ended, collected or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
