"""Fifty kills: whatever is killed, and when, the same command finishes the study as if nothing had been."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from archsearch.study import Study

from ..test_driver import events
from .harness import Victim

SEQUENTIAL = {"driver": 6, "worker": 5, "raylet": 2, "terminate": 1, "interrupt": 1, "interrupt_twice": 1}
PAIRS = {"driver": 8, "worker": 8, "raylet": 3, "terminate": 2, "interrupt": 2, "interrupt_twice": 1}
HOSTILE = {"driver": 4, "worker": 2, "hang": 1, "raylet": 1, "terminate": 1, "interrupt_twice": 1}


def schedule(kills: dict[str, int], seed: int) -> list[str]:
    found = [kill for kill, times in kills.items() for _ in range(times)]
    random.Random(seed).shuffle(found)
    return found


def results(run: Path) -> list[tuple[Any, ...]]:
    """What a study came to, without its times."""
    return [
        (trial.id, trial.state, trial.params, trial.hash, trial.values)
        for trial in Study.read(run).trials.values()
    ]


def killed(space: str, run: Path, kills: dict[str, int], seed: int) -> Victim:
    victim = Victim(space, run, seed)
    for kill in schedule(kills, seed):
        victim.suffer(kill)
    victim.finish()
    print(f"{space}: {dict(victim.done)}, {victim.trials} trials, exit codes {victim.codes}")
    return victim


def test_there_are_fifty() -> None:
    assert sum(sum(kills.values()) for kills in (SEQUENTIAL, PAIRS, HOSTILE)) == 50


@pytest.mark.slow
def test_one_trial_at_a_time_finds_what_an_undisturbed_sweep_finds(tmp_path: Path) -> None:
    victim = killed("sequential.yaml", tmp_path / "killed", SEQUENTIAL, seed=1)
    assert victim.done == SEQUENTIAL
    study = victim.assert_unharmed()
    undisturbed = Victim("sequential.yaml", tmp_path / "undisturbed", 0)
    undisturbed.finish(victim.trials)
    undisturbed.assert_unharmed()
    assert results(victim.run) == results(undisturbed.run)
    front = [trial.id for trial in Study.read(undisturbed.run).front()]
    assert [trial.id for trial in study.front()] == front
    assert sorted(path.stem for path in (victim.run / "front").iterdir()) == sorted(front)


@pytest.mark.slow
def test_two_trials_at_a_time(tmp_path: Path) -> None:
    victim = killed("pairs.yaml", tmp_path / "killed", PAIRS, seed=2)
    assert victim.done == PAIRS
    victim.assert_unharmed()


@pytest.mark.slow
def test_hostile_trials(tmp_path: Path) -> None:
    """Trials that raise, diverge, take memory without end and never end, are killed as well."""
    victim = killed("hostile.yaml", tmp_path / "killed", HOSTILE, seed=3)
    assert victim.done == HOSTILE
    study = victim.assert_unharmed(failures=True)
    kinds = {trial.id: trial.cause["kind"] for trial in study.trials.values() if trial.cause}
    assert {"non-finite loss", "ValueError", "out of memory", "time limit"} <= set(kinds.values())
    for trial, kind in kinds.items():
        assert kind != "worker died"
        assert (victim.run / "trials" / trial / "error.txt").read_text()
    # What would happen again is not tried again.
    began = [event["trial"] for event in events(victim.run) if event.get("retries")]
    assert HOSTILE["worker"] <= len(began) <= victim.shots
