"""The benchmarks of a GPU where there is none: how they time, and that their sweep runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """gpu_report with a clock that steps turn by hand."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_report")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def step(self, name: str, takes: float) -> Callable[[], None]:
        def run() -> None:
            self.now += takes
            self.ran.append(name)

        return run


def timed(timing: ModuleType, monkeypatch: pytest.MonkeyPatch, takes: dict[str, float], rounds: int) -> Any:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing.time, "monotonic", lambda: 0.0)
    taken = timing.seconds([clock.step(name, s) for name, s in takes.items()], rounds, warm=0)
    return taken, clock.ran


def test_every_step_follows_every_other_and_comes_before_it_as_often_as_after(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "abcd"
    taken, ran = timed(timing, monkeypatch, dict.fromkeys(names, 1.0), 20)
    assert taken == [[1.0] * 20] * 4
    rounds = [ran[i : i + 4] for i in range(4, len(ran), 4)]  # after one of each, to see how long they take
    assert all(sorted(order) == list(names) for order in rounds)
    for a in names:
        for b in names:
            assert a == b or sum(order.index(a) < order.index(b) for order in rounds) == 10
    assert len({(a, b) for a, b in pairwise(ran[4:]) if a != b}) == 12


def test_short_steps_are_repeated_and_long_ones_are_not(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short, long, least), ran = timed(timing, monkeypatch, {"s": 0.003, "l": 0.5, "n": 1e-6}, 2)
    assert short == pytest.approx([0.003] * 2)
    assert long == pytest.approx([0.5] * 2)
    assert least == pytest.approx([1e-6] * 2)
    assert [ran.count(name) for name in "sln"] == [1 + 2 * 6, 3, 1 + 2 * timing.MOST_REPEATS]


def test_a_case_that_the_end_of_a_run_cuts_short_is_left_to_another_run(
    timing: ModuleType, tmp_path: Path
) -> None:
    def long() -> dict[str, Any]:
        raise timing.OutOfTime("more than 43 s")

    path, now = tmp_path / "rows.json", timing.time.monotonic()
    ending, fresh = (timing.Report(path, now + seconds, True, 1) for seconds in (10, 1000))
    ending.case("decode", long)
    assert not ending.rows
    fresh.case("decode", long)
    assert fresh.rows["decode"]["error"] == "OutOfTime: more than 43 s"
    assert json.loads(path.read_text()) == fresh.rows


def test_another_machine_is_another_row(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, found = importlib.import_module("gpu"), {"device": "one"}
    monkeypatch.setattr(gpu, "machine", lambda: dict(found))
    report = timing.Report(tmp_path / "rows.json", timing.time.monotonic() + 1000, True, 1)
    for device in ("one", "one", "two", "one", "two"):
        found["device"] = device
        gpu.note_machine(report)
    assert {name: row["device"] for name, row in report.rows.items()} == {
        "machine": "one",
        "machine, run 2": "two",
    }


def test_the_steady_rate_leaves_out_what_workers_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rate_of = importlib.import_module("gpu_sweep").rate_of
    # Two at a time: 30 s each at first, then 10.
    ends = [30.0, 30.0, 40.0, 40.0, 50.0, 50.0]
    done = [SimpleNamespace(started=0.0, ended=end, seconds=10.0) for end in ends]
    found = rate_of(done, 2)
    assert found["trials an hour"] == pytest.approx(3600 * 6 / 50)
    assert found["steady"] == pytest.approx(3600 * 4 / 20)
    assert "steady" not in rate_of(done[:4], 2)
    assert rate_of([], 2) == {"trials": 0, "trials an hour": 0.0}


@pytest.mark.slow
def test_the_sweeps_rate_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_sweep.py"), "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    (sweep,) = json.loads((tmp_path / "rates.json").read_text())["sweeps"]
    assert (sweep["trials"], sweep["failed"]) == (2, [])
    assert sweep["trials an hour"] == pytest.approx(3600 * 2 / sweep["span s"], rel=0.02)
