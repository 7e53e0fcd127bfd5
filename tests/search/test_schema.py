"""The JSON Schema of search spaces takes every one that the loader takes, and its candidates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from archsearch.search.choosers import RandomChooser
from archsearch.search.schema import space_schema
from archsearch.search.space import load_space
from archsearch.spec.schema import json_schema
from archsearch.spec.source import Source

ROOT = Path(__file__).parents[2]
SCHEMA = space_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MODEL_VALIDATOR = jsonschema.Draft202012Validator(json_schema())
SPACES = [
    *ROOT.glob("search_spaces/*.yaml"),
    *ROOT.glob("tests/search/spaces/*.yaml"),
    *ROOT.glob("results/published/*/space.yaml"),
]
EXPERIMENTS = sorted(ROOT.glob("results/published/*/front/*.yaml"))
MALFORMED = Path(__file__).parent / "malformed"

EXPRESSIBLE = [
    "arch_null",
    "arch_word_in_choice",
    "choice_map",
    "choice_nested_empty",
    "choice_no_list",
    "choice_of_list_in_layers",
    "choice_wrong_type",
    "code_constraint",
    "code_flops",
    "code_lr",
    "code_lr_base",
    "code_lr_log",
    "code_lr_scale",
    "code_match",
    "code_match_by",
    "code_match_field",
    "constraint_operator",
    "constraints_mapping",
    "data_null",
    "empty_choice",
    "extra_key",
    "float_one_end",
    "float_word",
    "hole_in_objectives",
    "hole_in_search",
    "hole_two_words",
    "int_bool",
    "int_hole_in_range",
    "log_hole",
    "log_map",
    "lr_rule_scale",
    "match_by",
    "match_by_missing",
    "match_hole",
    "no_arch",
    "no_trials",
    "not_a_mapping",
    "objective_direction",
    "objective_extra",
    "objectives_none",
    "resources_key",
    "sampler_list",
    "scheduler_field",
    "scheduler_key",
    "scheduler_word",
    "search_list",
    "seed_huge",
    "seed_negative",
    "seeds_zero",
    "simplex_hole_in",
    "simplex_min_hole",
    "simplex_min_negative",
    "simplex_one",
    "simplex_unknown_key",
    "stack_depth_zero",
    "stack_no_of",
    "stack_of_empty",
    "stack_unknown_key",
    "start_number",
    "trials_float",
    "trials_huge",
    "trials_negative",
    "trials_word",
    "unknown_hole",
    "unknown_sampler",
    "unknown_section",
    "useless_alternative",
    "useless_nested",
]


def problem(validator: Any, value: Any) -> str:
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return "" if error is None else f"{list(error.absolute_path)}: {error.message[:300]}"


def test_it_is_a_schema_and_plain_json() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


@pytest.mark.parametrize("path", [*SPACES, *EXPERIMENTS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_takes_every_space_and_experiment(path: Path) -> None:
    assert problem(VALIDATOR, Source.read(path).value) == ""


def test_takes_the_readme() -> None:
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    for i, text in enumerate(found):
        value = Source(f"block {i}", text).value
        assert problem(VALIDATOR if "arch" in value else MODEL_VALIDATOR, value) == ""


@pytest.mark.parametrize("name", ["hybrids", "quickstart"])
def test_takes_candidates_as_they_are_written_down(name: str) -> None:
    space, rng = load_space(ROOT / f"search_spaces/{name}.yaml"), np.random.default_rng(0)
    for _ in range(10):
        candidate = space.candidate(RandomChooser(rng))
        assert candidate.experiment is not None
        assert problem(VALIDATOR, json.loads(json.dumps(candidate.experiment.dump()))) == ""


@pytest.mark.parametrize(
    "text",
    [
        "arch: {d_model: 32, vocab_size: 9, layers: {$stack: {depth: 2, of: [mlp, [mamba2, mlp]]}}}",
        "arch: {$choice: [{pattern: -, d_model: 8, vocab_size: 9}, {d_model: 8, vocab_size: 9, pattern: S}]}",
        "arch: {vocab_size: {$choice: [9]}, d_model: {$choice: [{$int: [8, 64, 8]}, 96]}, layers: [linear]}",
        "arch: {vocab_size: 9, match: {state_bytes@1024: {$log: [4K, 1M]}, by: d_model}, layers: [mamba2]}",
        "arch: {d_model: 8, tokenizer: bytes, layers: [mlp]}\n"
        "training: {flops: {$log: [1e12, 1e13]}, lr: {base: {$log: [1e-3, 1e-2]}, at: 64}}\n"
        "search: {scheduler: {halving: {by: recall}}, storage: none}\n"
        "resources: {memory: 2GiB, time_limit: 10m}",
        "arch: {d_model: 8, tokenizer: bytes, layers: [mlp]}\n"
        "data: {mixture: {mqar: {$float: [0, 1]}, own: 1}, sources: {own: {text: {path: a}}, more: facts}}",
    ],
    ids=["stack", "choice of arch", "nested", "match", "budgets", "sources"],
)
def test_takes_holes_everywhere(text: str) -> None:
    assert problem(VALIDATOR, Source("text", text).value) == ""


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_refuses_what_one_key_makes_wrong(name: str) -> None:
    assert not VALIDATOR.is_valid(Source.read(MALFORMED / f"{name}.yaml").value)


def test_fields_are_described() -> None:
    missing = [
        f"{part}.{field}"
        for part in ("HalvingSpec", "LearningRateRule", "Resources")
        for field, schema in SCHEMA["$defs"][part]["properties"].items()
        if not schema.get("description")
    ]
    assert not missing
    training = SCHEMA["$defs"]["section.training"]["properties"]
    assert training["lr"]["description"] == "peak learning rate of AdamW (arXiv 1711.05101)."
