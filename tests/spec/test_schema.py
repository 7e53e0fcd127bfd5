"""The JSON Schema takes what the loader takes, and refuses what one key alone makes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import jsonschema
import pytest
from contract.strategies import specs
from hypothesis import given, settings

from archsearch.spec import Layer, SpecError, load_spec
from archsearch.spec.schema import json_schema
from archsearch.spec.source import Source

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "specs").glob("*.yaml"))
MALFORMED = Path(__file__).parent / "malformed"

EXPRESSIBLE = [
    "boolean_for_integer",
    "boolean_for_number",
    "dt_limit_of_one",
    "dt_limit_of_three",
    "empty_branch",
    "empty_layer",
    "empty_layers",
    "empty_pattern",
    "float_for_integer",
    "gate_by_nothing",
    "huge_integer",
    "id_with_a_space",
    "layers_and_pattern",
    "list_for_mapping",
    "mapping_for_list",
    "merge_with_two_words",
    "missing_d_model",
    "missing_layers",
    "missing_vocabulary",
    "negative_width",
    "null_layers",
    "number_for_boolean",
    "number_for_layer",
    "number_for_name",
    "number_for_pattern",
    "pattern_with_a_strange_letter",
    "positions_as_a_number",
    "positions_without_a_length",
    "query_of_no_kind",
    "repeat_of_nothing",
    "repeat_with_other_keys",
    "repeat_zero",
    "string_for_number",
    "two_kinds_in_one_layer",
    "unknown_bare_layer",
    "unknown_default",
    "unknown_field",
    "unknown_key",
    "unknown_layer",
    "unknown_merge",
    "unknown_nested_key",
    "unknown_norm",
    "unknown_tokenizer",
    "unknown_word",
    "word_for_number",
    "word_no_for_boolean",
    "zero_heads",
    "zero_scale",
]


def test_it_is_a_schema_and_plain_json() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


@settings(max_examples=100)
@given(value=specs())
def test_takes_every_legal_spec(value: dict[str, Any]) -> None:
    VALIDATOR.validate(value)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_takes_the_library(path: Path) -> None:
    VALIDATOR.validate(Source.read(path).value)
    VALIDATOR.validate(load_spec(path).resolved())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "specs/published").glob("*.yaml")), ids=lambda path: path.stem
)
def test_takes_published_models(path: Path) -> None:
    VALIDATOR.validate(Source.read(path).value)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_refuses_what_one_key_makes_wrong(name: str) -> None:
    path = MALFORMED / f"{name}.yaml"
    assert not VALIDATOR.is_valid(Source.read(path).value)
    with pytest.raises(SpecError):
        load_spec(path)


def test_every_field_of_every_part_is_described() -> None:
    parts = {"model": SCHEMA, **SCHEMA["$defs"]}
    missing = [
        f"{name}.{field}"
        for name, part in parts.items()
        if name.startswith(("model", "layer.", "merge.", "repeat", "share", "pattern"))
        for field, schema in part.get("properties", {}).items()
        if not schema.get("description") and "$ref" not in schema
    ]
    assert not missing
    assert SCHEMA["$defs"]["layer.attention"]["properties"]["window"]["description"] == (
        "each token sees itself and the window - 1 before it."
    )


def test_a_layer_defined_elsewhere_is_in_it() -> None:
    class Decay(Layer):
        """Exponential averages.

        rate: of the decay.
        """

        kind: ClassVar[str] = "decay_for_schema"
        family: ClassVar[Literal["ssm", "attention", "channel", "parallel"]] = "ssm"
        rate: float = 0.5

    validator = jsonschema.Draft202012Validator(json_schema())
    spec = {
        "tokenizer": "bytes",
        "d_model": 8,
        "layers": ["decay_for_schema", {"decay_for_schema": {"rate": 1}}],
    }
    validator.validate(spec)
    assert not VALIDATOR.is_valid(spec)
    spec["layers"] = [{"decay_for_schema": {"rte": 1}}]
    assert not validator.is_valid(spec)
