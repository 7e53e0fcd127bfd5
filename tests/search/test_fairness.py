"""Candidates that are compared like with like: equal budgets, and rates carried over widths."""

from pathlib import Path

import numpy as np
import pytest

from archsearch.search.choosers import RandomChooser
from archsearch.search.space import SearchSpace, load_space
from archsearch.search.sweep import Sweep
from archsearch.spec import model_cost
from archsearch.study import Study

TEXT = """
name: fair
arch:
  tokenizer: bytes
  d_model: {$choice: [48, 64]}
  match: {params: {$choice: [150K, 200K]}, by: mlp.expand}
  layers:
    - $stack: {depth: {$int: [1, 3]}, of: [mamba1, attention: {heads: {$choice: [1, 2]}}, gated_conv]}
    - mlp
training: {flops: 10G, context: 64, lr: {base: {$log: [0.001, 0.01]}, at: 64, scale: width}}
search: {trials: 4, start_from: [own.yaml]}
"""


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    (tmp_path / "own.yaml").write_text(
        "tokenizer: bytes\nd_model: 24\ndefaults: {mlp: {expand: 9}}\nlayers: [mlp, mlp]\n"
    )
    (tmp_path / "space.yaml").write_text(TEXT)
    return load_space(tmp_path / "space.yaml")


def test_every_candidate_has_the_budget_that_it_was_given(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):
        candidate = space.candidate(RandomChooser(rng), 0 if i == 0 else None)
        assert candidate.experiment is not None, candidate.problem
        budget = {"150K": 150_000, "200K": 200_000}[candidate.params["arch.match.params"]]
        assert candidate.costs.summary()["params"] == pytest.approx(budget, rel=0.01)
        training = candidate.experiment.training
        assert training.lr == pytest.approx(
            candidate.params["training.lr.base"] * 64 / candidate.experiment.arch.d_model, rel=1e-3
        )
        assert training.steps * training.tokens_per_step == training.tokens


def test_the_matched_width_is_in_the_trials_record(space: SearchSpace, tmp_path: Path) -> None:
    sweep = Sweep(space, tmp_path / "run")
    first = sweep.next()
    sweep.close()
    assert first is not None
    assert "expand:" in (tmp_path / "run/trials" / first / "spec.yaml").read_text()
    trial = Study.read(tmp_path / "run").trials[first]
    assert trial.params["start_from"] == "own.yaml"
    assert min(abs(trial.cost["params"] / budget - 1) for budget in (150_000, 200_000)) <= 0.01


def test_another_budget_is_another_space(space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(TEXT.replace("200K", "210K"))
    other = load_space(tmp_path / "other.yaml")
    assert other.hash != space.hash
    assert other.changes_from(space) == ['arch.match.params.$choice.1: "200K" -> "210K"']


def test_an_experiment_with_a_budget_may_be_a_start(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "arch:\n  tokenizer: bytes\n  d_model: 24\n  match: {params: 90K, by: mlp.expand}\n  layers: [mlp]\n"
    )
    (tmp_path / "space.yaml").write_text(
        "arch: {tokenizer: bytes, d_model: 32, layers: [{$choice: [mlp, mamba1]}]}\n"
        "search: {start_from: [own.yaml]}\n"
    )
    (start,) = load_space(tmp_path / "space.yaml").starts
    assert model_cost(start).total.params == pytest.approx(90_000, rel=0.01)
