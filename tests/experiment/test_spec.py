"""Experiment files: sections that fit together, copies, hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archsearch.experiment import Experiment, load_experiment
from archsearch.spec import SpecError, parse_spec, to_yaml

ARCH = {"tokenizer": "bytes", "d_model": 16, "layers": ["attention", {"mlp": {"hidden": 8}}]}


def experiment(**sections: Any) -> Experiment:
    return Experiment.model_validate({"arch": ARCH, **sections})


def test_everything_but_the_model_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(to_yaml({"name": "bare", **ARCH}))
    bare = load_experiment(path)
    assert bare.name == "bare"
    assert bare.hash == experiment().hash
    assert (bare.contexts, bare.domains, bare.recall_tasks) == ([128], ["reference"], ["mqar"])


def test_writing_and_reading_gives_the_same_experiment(tmp_path: Path) -> None:
    full = experiment(
        name="full",
        data={"mixture": {"code": 2, "pairs": 1}, "sources": {"pairs": {"mqar": {"pairs": 4, "length": 64}}}},
        training={"tokens": "2M", "lr": 0.001, "betas": [0.9, 0.95], "context": 64},
        evaluation={"contexts": [64, 256], "recall": ["pairs", "facts"], "recall_contexts": [128]},
    )
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml(full.dump()))
    again = load_experiment(path)
    assert again == full
    assert again.hash == full.hash
    assert again.training.tokens == 2_000_000


def test_recall_is_asked_for_even_where_none_is_trained() -> None:
    text_only = experiment(data={"mixture": {"reference": 1}})
    assert text_only.recall_tasks == ["mqar"]
    assert experiment(data={"mixture": {"reference": 1}}, evaluation={"recall": []}).recall_tasks == []


CHANGES: list[dict[str, Any]] = [
    {"arch": {**ARCH, "d_model": 32}},
    {"data": {"mixture": {"reference": 1, "mqar": 2}}},
    {"data": {"mixture": {"mqar": 1, "reference": 1}}, "evaluation": {"domains": ["reference"]}},
    {"data": {"mixture": {"reference": 1, "mqar": 1}, "sources": {"mqar": {"mqar": {"pairs": 4}}}}},
    {"training": {"lr": 0.001}},
    {"training": {"seed": 1}},
    {"training": {"tokens": 5000}},
    {"evaluation": {"split": "test"}},
    {"evaluation": {"contexts": [128, 256]}},
    {"evaluation": {"domains": ["code"]}},
    {"evaluation": {"recall": ["facts"]}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_is_computed_changes_the_hash(change: dict[str, Any]) -> None:
    assert experiment(**change).hash != experiment().hash


@pytest.mark.parametrize(
    "same",
    [
        {"name": "other"},
        {"data": {"mixture": {"reference": 3, "mqar": 3}}},
        {"training": {"tokens": "1M"}},
        {"evaluation": {"domains": ["reference"], "contexts": [128]}},
        {"arch": {**ARCH, "name": "other"}},
    ],
    ids=str,
)
def test_form_does_not(same: dict[str, Any]) -> None:
    assert experiment(**same).hash == experiment().hash


def test_copies_are_checked() -> None:
    assert experiment().with_training(tokens="3M", seed=4).training.tokens == 3_000_000
    changed = experiment().with_evaluation(split="test", contexts=[256])
    assert (changed.contexts, changed.evaluation.split) == ([256], "test")
    with pytest.raises(ValueError, match=r"training\.lr: must be greater than 0"):
        experiment().with_training(lr=-1.0)


def test_every_problem_is_found_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        experiment(
            training={"context": 48, "tokens_per_step": 96},
            evaluation={"domains": ["cod"], "recall": ["code"], "tokens": 20},
        )
    places = [".".join(map(str, error["loc"])) for error in caught.value.errors()]
    assert places == [
        "data.mixture.mqar",
        "evaluation.tokens",
        "evaluation.domains.0",
        "evaluation.recall.0",
    ]


def test_learned_positions_must_reach_every_length_that_is_asked() -> None:
    def with_positions(learned: int, **sections: Any) -> Experiment:
        return experiment(arch={**ARCH, "embedding": {"positions": {"learned": learned}}}, **sections)

    short = {"context": 32, "tokens_per_step": 64}
    with_positions(32, training=short)
    for sections in (
        {"evaluation": {"contexts": [64]}},
        {"evaluation": {"recall_contexts": [64]}},
        {"evaluation": {"recall": ["facts"]}},
    ):
        with pytest.raises(ValidationError, match="32 positions are fewer than the longest context"):
            with_positions(32, training=short, **sections)


def test_a_model_alone_is_still_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("d_model: 16\nlayers: [mlp]\n")
    with pytest.raises(SpecError, match=r":1:1: : missing key 'tokenizer'"):
        load_experiment(path)
    assert parse_spec(to_yaml({"arch": ARCH})).hash == experiment().arch.hash
