"""Ended trials are logged elsewhere once, with what the record says of them."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from archsearch.study import Study, StudyLog, Trial
from archsearch.ui import tracking
from archsearch.ui.tracking import check_trackers, track

PARAMS = {"arch.layers.0.$stack.0": "mamba2", "training.lr": 0.003}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A study of a complete, a failed, an infeasible and a running trial."""
    out = tmp_path / "run"
    with StudyLog(out) as log:
        objectives = {"recall": "maximize", "perplexity": "minimize"}
        log.append({"event": "study", "version": 2, "name": "a study", "objectives": objectives, "trials": 4})
        for name in ("0000", "0001", "0003"):
            fields = {"params": PARAMS, "hash": name, "cost": {"params": 1000}, "mixture": {"code": 1.0}}
            log.trial(name, "running", **fields)
            (out / "trials" / name).mkdir(parents=True)
            lines = [
                f'{{"step": {s}, "steps": 3, "loss": {4 - s}.5, "lr": 0.001, "time": {s}.0}}' for s in (1, 2)
            ]
            (out / "trials" / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        scored = {"recall": 0.5, "perplexity": 6.0}
        log.trial("0000", "complete", values=scored, metrics=scored | {"recall/mqar@32": 0.5}, seconds=2.0)
        log.trial("0001", "failed", cause={"kind": "ValueError", "message": "as asked"}, seconds=1.0)
        log.trial("0002", "infeasible", params=PARAMS, constraints={"params <= 1K": 0.5})
    return out


def end(run: Path, trial: str) -> None:
    with StudyLog(run) as log:
        log.trial(trial, "complete", values={"recall": 0.1, "perplexity": 7.0}, metrics={}, seconds=1.0)


class Noting:
    """Keeps ids of what it is given."""

    kept: ClassVar[list[str]] = []

    def __init__(self, study: Study):
        self.study = study

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in trials if trial.id not in self.kept]

    def log(self, trial: Trial) -> None:
        if trial.id == "0001" and not self.kept.count("broken"):
            self.kept.append("broken")
            raise OSError("the network is down")
        self.kept.append(trial.id)

    def close(self) -> None: ...


def test_trials_are_logged_as_they_end(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once each, whatever fails on the way; those that were not trained and those that run are left out."""
    monkeypatch.setattr(tracking, "TRACKERS", {"noting": Noting})
    monkeypatch.setattr(tracking, "check_trackers", lambda names: None)
    monkeypatch.setattr(tracking, "PERIOD_SECONDS", 0.01)
    Noting.kept.clear()
    with tracking.tracking(run, ["noting"]):
        end(run, "0003")
    assert sorted(set(Noting.kept) - {"broken"}) in (["0000"], ["0000", "0001", "0003"])
    left = 4 - len(Noting.kept)
    assert track(run, ["noting"]) == {"noting": left}
    assert sorted(Noting.kept) == ["0000", "0001", "0003", "broken"]
    told = capsys.readouterr().err
    assert told in (
        "",
        f"noting: the network is down; `archsearch report {run} --track noting` logs the rest\n",
    )


def test_a_missing_package_is_named_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb is not installed: pip install 'archsearch\[track\]'"):
        check_trackers(["wandb"])
    with pytest.raises(ValueError, match="unknown tracker 'tensorboard'; expected one of: wandb, mlflow"):
        check_trackers(["tensorboard"])


def test_mlflow_has_each_trial_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert track(run, ["mlflow"]) == {"mlflow": 2}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name.startswith("a study-"))
    half = client.create_run(experiment.experiment_id, tags={"trial": "0003"})  # as a kill leaves it
    end(run, "0003")
    assert track(run, ["mlflow"]) == {"mlflow": 1}
    assert track(run, ["mlflow"]) == {"mlflow": 0}
    runs = {one.data.tags["trial"]: one for one in client.search_runs([experiment.experiment_id])}
    assert {name: one.info.status for name, one in runs.items()} == {
        "0000": "FINISHED",
        "0001": "FAILED",
        "0003": "FINISHED",
    }
    assert runs["0003"].info.run_id != half.info.run_id
    complete = runs["0000"].data
    assert complete.params == {"arch.layers.0.stack.0": "mamba2", "training.lr": "0.003"}
    assert complete.metrics["objective/recall"] == 0.5
    assert complete.metrics["score/recall/mqar_32"] == 0.5
    assert (complete.tags["state"], complete.tags["mixture.code"]) == ("complete", "1.0")
    curve = client.get_metric_history(runs["0000"].info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(1, 3.5), (2, 2.5)]
    assert runs["0001"].data.tags["cause"] == "ValueError: as asked"


def test_wandb_has_each_trial_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track(run, ["wandb"]) == {"wandb": 2}
    end(run, "0003")
    assert track(run, ["wandb"]) == {"wandb": 1}
    assert track(run, ["wandb"]) == {"wandb": 0}
    folders = sorted(run.glob("wandb/offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["0000", "0001", "0003"]
    told = [_told(next(folder.glob("*.wandb"))) for folder in folders]
    assert told[0]["config"]["training.lr"] == "0.003"
    assert [row["loss"] for row in told[0]["history"] if "loss" in row] == ["3.5", "2.5"]
    assert told[0]["summary"]["recall"] == "0.5"
    assert [one["exit"] for one in told] == [0, 1, 0]
    assert told[1]["config"]["cause"] == '"ValueError: as asked"'


def _told(path: Path) -> dict[str, Any]:
    """What a run's own file holds, of what Weights & Biases would be sent."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"config": {}, "summary": {}, "history": [], "exit": None}

    def items(updates: Any) -> dict[str, str]:
        return {item.key or ".".join(item.nested_key): item.value_json for item in updates}

    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["config"] |= items(record.run.config.update)
        elif kind == "history":
            found["history"].append(items(record.history.item))
        elif kind == "summary":
            found["summary"] |= items(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The file is LevelDB's log: blocks of 32 KiB, records in pieces of (checksum, length, type), after a
    head of 7 bytes; types 1 and 4 end a record."""
    at, kept = 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        kept += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield kept
            kept = b""
