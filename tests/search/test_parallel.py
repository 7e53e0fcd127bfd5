"""Trials that two workers train together, through Ray: stopped half-way, continued, and as one would."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from archsearch.search.driver import run_sweep
from archsearch.search.space import load_space
from archsearch.search.work import TrialWork
from archsearch.study import Study
from tests.search.test_driver import SPACES, assert_whole, wait_for


def points(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_trial_of_two_workers_is_that_of_one(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    text = (SPACES / "tiny.yaml").read_text()
    path.write_text(
        text.replace("8K", "64K").replace("trials: 4", "trials: 1").replace("concurrent", "workers")
    )
    run, stop = tmp_path / "run", threading.Event()

    def interrupt() -> None:
        wait_for(lambda: list(run.glob("trials/0000/checkpoint.pt")))
        time.sleep(0.5)
        stop.set()

    watch = threading.Thread(target=interrupt)
    watch.start()
    assert run_sweep(load_space(path), run, stop=stop).interrupted
    watch.join()
    half_way = points(run / "trials/0000")[-1]["step"]
    assert 0 < half_way < 250

    assert run_sweep(load_space(path), run).counts == {"complete": 1}
    assert_whole(run, trials=1)
    trial = run / "trials/0000"
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "spec.yaml").write_text((trial / "spec.yaml").read_text())
    work = TrialWork(alone, tmp_path / "stop")
    while (outcome := work.advance()) is None:
        pass
    together, by_one = (
        {point["step"]: point["loss"] for point in points(folder) if "loss" in point}
        for folder in (trial, alone)
    )
    assert together.keys() == by_one.keys()
    assert list(together.values()) == pytest.approx(list(by_one.values()), rel=1e-3)
    values = Study.read(run).trials["0000"].values
    assert values["perplexity"] == pytest.approx(outcome["metrics"]["perplexity"], rel=1e-2)
    assert (trial / "weights.safetensors").exists()
    assert {path.name for path in trial.iterdir()} - {".lock"} == {
        "spec.yaml",
        "metrics.jsonl",
        "weights.safetensors",
    }
