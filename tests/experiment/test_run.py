"""Runs in their folders: curves, interruptions at any point, weights that come back."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch.experiment import Experiment
from archsearch.experiment.run import ExperimentRun, load_trained, score
from archsearch.spec import to_yaml
from archsearch.training.errors import TrainingFailed

ARCH = {
    "tokenizer": "bytes",
    "d_model": 16,
    "embedding": {"tied": True},
    "layers": [
        {"attention": {"heads": 2, "id": "shared"}},
        {"mamba2": {"head_dim": 8, "d_state": 4}},
        {"parallel": {"id": "both", "branches": ["mlp", {"mlp": {"hidden": 8}}], "merge": "concat"}},
        {"share": "shared"},
        {"share": "both"},
    ],
}


def experiment(**training: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "arch": ARCH,
            "training": {
                "tokens": 12 * 128,
                "context": 64,
                "tokens_per_step": 128,
                "checkpoint_every": 5,
                **training,
            },
            "evaluation": {"tokens": 256, "examples": 8},
        }
    )


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(point["step"], point["loss"]) for point in curve(folder) if "loss" in point]


def weights(run: ExperimentRun) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentRun, dict[str, float]]:
    """A run that nothing interrupts."""
    run = ExperimentRun(experiment(), tmp_path_factory.mktemp("through"))
    report = run.advance(100)
    assert report is not None
    assert report.step == run.steps == 12
    return run, run.evaluate()


Through = tuple[ExperimentRun, dict[str, float]]


def test_a_run_leaves_a_curve_scores_and_weights(through: Through) -> None:
    run, metrics = through
    assert sorted(p.name for p in run.folder.iterdir()) == ["metrics.jsonl", "weights.safetensors"]
    *points, last = curve(run.folder)
    assert [point["step"] for point in points] == list(range(1, 13))
    assert [point["tokens"] for point in points] == [128 * step for step in range(1, 13)]
    assert all(point["steps"] == 12 and set(point["losses"]) <= {"reference", "mqar"} for point in points)
    assert last["evaluation"] == metrics
    assert run.seconds == last["seconds"] > 0
    assert math.isfinite(metrics["perplexity"])
    report = run.data_report()
    assert sum(report["tokens"].values()) == 12 * 128


@pytest.mark.parametrize("stops", [[3], [5], [1, 2, 11], [12]], ids=str)
def test_an_interrupted_run_ends_where_one_that_ran_through_does(
    stops: list[int], through: Through, tmp_path: Path
) -> None:
    truth, metrics = through
    done = 0
    for stop in stops:
        run = ExperimentRun(experiment(), tmp_path)
        assert run.step == done
        run.advance(stop - done)
        run.checkpoint()
        done = stop
        run.close()
    run = ExperimentRun(experiment(), tmp_path)
    run.advance(100)
    assert same(weights(run), weights(truth))
    assert run.evaluate() == metrics
    assert losses(tmp_path) == losses(truth.folder)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(through: Through, tmp_path: Path) -> None:
    truth, _ = through
    spec = tmp_path / "experiment.yaml"
    spec.write_text(to_yaml(experiment().dump()))
    folder = tmp_path / "run"
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from archsearch.experiment import load_experiment
        from archsearch.experiment.run import ExperimentRun
        run = ExperimentRun(load_experiment({str(spec)!r}), Path({str(folder)!r}))
        run.advance(8)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [step for step, _ in losses(folder)] == list(range(1, 9))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # torn by the kill
    run = ExperimentRun(experiment(), folder)
    assert run.step == 5
    assert [step for step, _ in losses(folder)] == list(range(1, 6))
    run.advance(100)
    assert losses(folder) == losses(truth.folder)
    assert same(weights(run), weights(truth))


def test_a_trained_run_is_scored_again_and_not_trained_again(through: Through, tmp_path: Path) -> None:
    truth, metrics = through
    run = ExperimentRun(experiment(), tmp_path)
    run.advance(100)
    run.evaluate()
    seconds = run.seconds
    written = losses(tmp_path)
    again = ExperimentRun(experiment(), tmp_path)
    assert again.finished
    assert again.advance(5) is None
    assert again.seconds == pytest.approx(seconds)
    assert same(weights(again), weights(truth))
    assert again.evaluate() == metrics
    assert losses(tmp_path) == written
    assert sum("evaluation" in point for point in curve(tmp_path)) == 1


def test_killed_between_weights_and_scores_it_is_only_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ExperimentRun(experiment(), tmp_path)
    run.advance(100)

    def killed(point: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_log", killed)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate()
    assert (tmp_path / "weights.safetensors").exists()
    again = ExperimentRun(experiment(), tmp_path)
    assert again.finished
    assert again.evaluate()["recall"] >= 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "weights.safetensors"]


@pytest.mark.parametrize(
    "arch", [ARCH, {**ARCH, "embedding": {"positions": {"learned": 128}}}], ids=["a", "b"]
)
def test_weights_come_back(arch: dict[str, Any], tmp_path: Path) -> None:
    values = {**experiment().dump(), "arch": arch}
    made = Experiment.model_validate(values)
    run = ExperimentRun(made, tmp_path)
    run.advance(2)
    run.trainer.step = run.steps
    metrics = run.evaluate()
    model = load_trained(made, tmp_path / "weights.safetensors")
    assert same(model.state_dict(), weights(run))
    assert score(model, made) == metrics


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    run = ExperimentRun(experiment(tokens=250 * 128, checkpoint_every=1000), tmp_path)
    run.advance(7)
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 4, 6]


def test_a_failure_keeps_the_curve_and_the_checkpoint(tmp_path: Path) -> None:
    run = ExperimentRun(experiment(lr=1e9, clip=1e9, tokens=100 * 128, warmup=0.0), tmp_path)
    with pytest.raises(TrainingFailed) as caught:
        run.advance(100)
    assert caught.value.kind.startswith("non-finite")
    assert run.step == caught.value.step
    assert all(math.isfinite(loss) for _, loss in losses(tmp_path))


def test_scores_before_the_end_keep_no_weights(tmp_path: Path) -> None:
    run = ExperimentRun(experiment(), tmp_path)
    run.advance(2)
    run.evaluate()
    assert not (tmp_path / "weights.safetensors").exists()
    assert curve(tmp_path)[-1]["step"] == 2
