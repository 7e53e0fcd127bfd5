"""Trials that run elsewhere: the same candidates and the same record as a sweep's, one process at a time."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

from archsearch.experiment import load_experiment
from archsearch.search.ask_tell import ask, tell, tell_failed
from archsearch.search.space import SearchSpace, load_space
from archsearch.search.sweep import Sweep
from archsearch.study import Study, StudyError

SPACES = Path(__file__).parent / "spaces"


def space_of(tmp_path: Path, *changes: tuple[str, str]) -> SearchSpace:
    text = (SPACES / "tiny.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "space.yaml").write_text(text)
    return load_space(tmp_path / "space.yaml")


def without_times(run: Path, kind: str) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "study.jsonl").read_text().splitlines())
    return [{k: v for k, v in event.items() if k != "time"} for event in events if event["event"] == kind]


def scores(number: int) -> dict[str, float]:
    return {"recall": number / 10, "perplexity": 4.0 + number, "own": 7.0}


def test_asking_and_telling_is_a_sweep(tmp_path: Path) -> None:
    space = space_of(tmp_path, ("trials: 4", "trials: 6, storage: none"))
    sweep = Sweep(space, tmp_path / "swept")
    for number in range(6):
        trial = sweep.next()
        assert trial is not None
        sweep.complete(trial, scores(number), 1.0)
    sweep.write_front()
    sweep.close()
    for number in range(6):
        found = ask(space, tmp_path / "asked")
        assert found is not None
        assert load_experiment(found.spec).name == f"tiny-{found.trial}"
        tell(tmp_path / "asked", found.trial, scores(number), 1.0)
        assert Study.read(tmp_path / "asked").status == ("waiting" if number < 5 else "finished")
    assert ask(space, tmp_path / "asked") is None
    assert without_times(tmp_path / "asked", "trial") == without_times(tmp_path / "swept", "trial")
    fronts = [
        sorted(path.name for path in (tmp_path / run / "front").iterdir()) for run in ("asked", "swept")
    ]
    assert fronts[0] == fronts[1]
    # Whoever asks tells about a trial's end only: there are no rungs, as the record says.
    schedulers = [Study.read(tmp_path / run).header.scheduler for run in ("asked", "swept")]
    assert schedulers == ["none", "halving (stopping)"]
    more = ask(space, tmp_path / "asked", trials=7)
    assert more is not None
    assert more.trial == "0006"


def test_several_are_open_and_end_in_any_order(tmp_path: Path) -> None:
    space, run = space_of(tmp_path), tmp_path / "run"
    asked = [ask(space, run) for _ in range(4)]
    names = [found.trial for found in asked if found is not None]
    assert names == ["0000", "0001", "0002", "0003"]
    assert ask(space, run) is None
    tell(run, "0002", scores(2))
    tell_failed(run, "0000", {"kind": "out of memory", "message": "on my machine"})
    event = tell(run, "0003", {"recall": 0.1, "perplexity": float("nan")})
    assert (event["state"], event["cause"]["kind"]) == ("failed", "non-finite metric")
    study = Study.read(run)
    assert study.counts() == {"failed": 2, "complete": 1, "running": 1}
    assert study.trials["0000"].cause == {"kind": "out of memory", "message": "on my machine"}
    assert study.trials["0002"].metrics["own"] == 7.0
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'optuna.db'}")
    assert sorted(trial.user_attrs["trial"] for trial in stored.trials) == ["0000", "0002", "0003"]


def test_a_sweep_takes_over_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archsearch.search.ask_tell.PATIENCE_SECONDS", 0.2)
    space, run = space_of(tmp_path), tmp_path / "run"
    assert ask(space, run) is not None
    sweep = Sweep(space, run)
    with pytest.raises(StudyError, match="already running this study"):
        ask(space, run)
    with pytest.raises(StudyError, match="already running this study"):
        tell(run, "0000", scores(0))
    assert sweep.next() == "0000"
    sweep.complete("0000", scores(0), 1.0)
    sweep.close()
    with pytest.raises(StudyError, match="trial 0000 has ended already: complete"):
        tell(run, "0000", scores(0))


def test_those_who_ask_at_once_wait_for_each_other(tmp_path: Path) -> None:
    space, run = space_of(tmp_path), tmp_path / "run"
    holder = Sweep(space, run)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, space, run)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1.5)  # longer than the lock's own patience
        holder.close()
        found = waiting.result(timeout=30)
    assert found is not None
    assert found.trial == "0000"


def test_mistakes_are_told_and_change_nothing(tmp_path: Path) -> None:
    space, run = space_of(tmp_path), tmp_path / "run"
    assert ask(space, run) is not None
    before = (run / "study.jsonl").read_bytes()
    for metrics, message in (
        ({"recall": 0.5}, "missing perplexity"),
        ({"recall": 0.5, "perplexity": "low"}, "perplexity: expected a number, found 'low'"),
        ({"recall": True, "perplexity": 3.0}, "recall: expected a number, found True"),
        ({"recall": 1.5, "perplexity": 3.0}, "recall: expected 0 to 1, found 1.5"),
        ({"recall": 0.5, "perplexity": 0.5}, "perplexity: expected 1 to inf, found 0.5"),
        ({"recall": 0.5, "perplexity": 3.0, "recall/own@64": -1}, "recall/own@64: expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            tell(run, "0000", metrics)
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds: expected a number of at least 0"):
            tell(run, "0000", scores(0), seconds)
    with pytest.raises(ValueError, match="what the trial failed of"):
        tell_failed(run, "0000", {"kind": "", "message": ""})
    with pytest.raises(StudyError, match=r"no trial '7'; open are: 0000"):
        tell(run, "7", scores(0))
    with pytest.raises(StudyError, match="not a run folder"):
        tell(tmp_path / "nowhere", "0000", scores(0))
    assert not (tmp_path / "nowhere").exists()
    assert (run / "study.jsonl").read_bytes() == before
    halving = space_of(tmp_path, ("seed: 3", "seed: 3, scheduler: halving"))
    with pytest.raises(ValueError, match="expected scheduler: none"):
        ask(halving, tmp_path / "other")


def test_costs_need_not_be_told_and_given_layouts_work(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("tokenizer: bytes\nd_model: 24\nlayers: [mlp, mlp]\n")
    objectives = "name: tiny\nobjectives: {recall: maximize, params: minimize}\n"
    space = space_of(tmp_path, ("name: tiny\n", objectives), ("seed: 3", "seed: 3, start_from: [own.yaml]"))
    run = tmp_path / "run"
    found = ask(space, run)
    assert found is not None
    event = tell(run, found.trial, {"recall": 0.5})
    assert event["values"] == {"recall": 0.5, "params": Study.read(run).trials["0000"].cost["params"]}


def test_the_commands(tmp_path: Path) -> None:
    space_of(tmp_path, ("trials: 4", "trials: 2, storage: none"))
    run = tmp_path / "run"

    def call(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "archsearch", *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)

    asking = ("ask", str(tmp_path / "space.yaml"), "--out", str(run))
    first = call(*asking)
    assert first.stdout.startswith(f"# trial 0000 of {run}\nname: tiny-0000\n")
    (tmp_path / "first.yaml").write_text(first.stdout)
    assert load_experiment(tmp_path / "first.yaml").hash == Study.read(run).trials["0000"].hash
    told = call("tell", str(run), "0000", "-", "--seconds", "3", text='{"recall": 0.5, "perplexity": 6}')
    assert told.stdout == "trial 0000: complete (recall 0.5, perplexity 6)\n"
    second = json.loads(call(*asking, "--json").stdout)
    assert (second["trial"], second["experiment"]["name"]) == ("0001", "tiny-0001")
    assert call("tell", str(run), "0001", "--failed", "lost").stdout == "trial 0001: failed\n"
    over = call(*asking)
    assert (over.returncode, over.stdout) == (1, "")
    assert "no further candidate" in over.stderr
    twice = call("tell", str(run), "0001", "-", text='{"recall": 0.5, "recall": 0.6, "perplexity": 6}')
    assert twice.stderr == "stdin: recall is given twice\n"
    for arguments in (("0000", "-"), ("0001",), ("0001", str(tmp_path / "none.json"))):
        wrong = call("tell", str(run), *arguments, text="[1]")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
