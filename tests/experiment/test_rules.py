"""What an experiment leaves to be worked out: a matched width, tokens from FLOPs, a rate by width."""

from pathlib import Path
from typing import Any

import pytest

from archsearch.experiment.rules import training_flops
from archsearch.experiment.spec import load_experiment
from archsearch.spec import SpecError, model_cost, to_yaml

ARCH: dict[str, Any] = {"tokenizer": "bytes", "d_model": 64, "layers": ["mamba2", "mlp"]}


def write(tmp_path: Path, **sections: Any) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml({"arch": ARCH, **sections}))
    return path


def test_what_was_worked_out_is_written_as_plain_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        arch={**ARCH, "match": {"params": "200K", "by": "mlp.expand"}},
        training={"flops": 1e10, "lr": {"base": 0.004, "at": 256, "scale": "width"}},
    )
    experiment = load_experiment(path)
    assert model_cost(experiment.arch).total.params == pytest.approx(200_000, rel=0.01)
    assert experiment.training.lr == 0.016
    (tmp_path / "again.yaml").write_text(to_yaml(experiment.dump()))
    assert "match" not in (tmp_path / "again.yaml").read_text()
    assert load_experiment(tmp_path / "again.yaml").hash == experiment.hash


def test_a_budget_of_operations_buys_whole_steps(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, training={"flops": "20G", "context": 64}))
    step = training_flops(experiment.arch, experiment.training) / experiment.training.steps
    assert 0 <= 20e9 - training_flops(experiment.arch, experiment.training) < step
    assert experiment.training.tokens == experiment.training.steps * experiment.training.tokens_per_step


def test_matched_operations_are_those_of_the_longest_scored_length(tmp_path: Path) -> None:
    arch = {**ARCH, "layers": ["attention", "mlp"], "match": {"flops_per_token": "500K", "by": "mlp.expand"}}
    experiment = load_experiment(write(tmp_path, arch=arch, evaluation={"contexts": [64, 1024]}))
    assert model_cost(experiment.arch, 1024).total.flops == pytest.approx(500_000, rel=0.01)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"flops": 1e15, "tokens": "1M"}, "training.flops: flops and tokens say the same thing"),
        ({"flops": "much"}, "training.flops: expected a number such as 4M"),
        ({"flops": -1}, "training.flops: expected a number of operations"),
        ({"flops": 10}, "training.flops: 10 FLOPs are less than one step's"),
        ({"lr": {"base": 0.1}}, "training.lr.at: missing key 'at'"),
        ({"lr": {"base": 0.1, "at": 64, "scale": "depth"}}, "training.lr.scale: unknown value 'depth'"),
        ({"lr": {"base": 0.1, "at": 64}, "contxt": 3}, "training.contxt: unknown key 'contxt'"),
    ],
)
def test_mistakes_are_located(training: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_experiment(write(tmp_path, training=training))
    assert message in str(caught.value)
    assert str(caught.value).split(":")[1] != "1"
