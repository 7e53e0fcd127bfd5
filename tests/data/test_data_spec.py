from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.data.spec import BUILT_IN, DataSpec

MISTAKES: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"mixture": {"refrence": 1}}, ("mixture", "refrence"), "did you mean 'reference'"),
    ({"mixture": {"mine": 1}, "sources": {"mime": "mqar"}}, ("mixture", "mine"), "did you mean 'mime'"),
    ({"mixture": {}}, ("mixture",), "at least 1"),
    ({"mixture": {"code": -1}}, ("mixture", "code"), "greater than or equal to 0"),
    ({"mixture": {"code": float("nan")}}, ("mixture", "code"), "finite"),
    ({"mixture": {"code": float("inf")}}, ("mixture", "code"), "finite"),
    ({"mixture": {"code": "half"}}, ("mixture", "code"), "valid number"),
    ({"mixture": {"code": 0, "mqar": 0}}, ("mixture",), "all weights are zero"),
    ({"mixture": [1]}, ("mixture",), "valid dictionary"),
    ({"mixtur": {}, "mixture": {"code": 1}}, ("mixtur",), "Extra inputs"),
]

SOURCE_MISTAKES: list[tuple[Any, tuple[str, ...], str]] = [
    ({"mqar": {"pairs": "x"}}, ("mqar", "pairs"), "valid integer"),
    ({"mqar": {"pairs": 9}}, ("mqar", "pairs"), "at least 4 \\* pairs = 36"),
    ({"mqar": {"pair": 9}}, ("mqar", "pair"), "Extra inputs"),
    ({"mqa": {}}, ("mqa",), "did you mean 'mqar'"),
    ("mqa", ("mqa",), "did you mean 'mqar'"),
    ({"mqar": {}, "facts": {}}, (), "exactly one kind of source .* found mqar and facts"),
    ({}, (), "found none"),
    (3, (), "valid dictionary"),
    ({"domain": {"name": "cod"}}, ("domain", "name"), "'reference' or 'code'"),
    ({"text": None}, ("text", "path"), "required"),
    ({"text": {"path": ""}}, ("text", "path"), "at least 1 character"),
    ({"facts": {"length": 64}}, ("facts", "length"), "expected a length of at least"),
    ({"paraphrases": {"facts": 7}}, ("paraphrases", "facts"), "expected a length of at least"),
]


@pytest.mark.parametrize(("value", "loc", "message"), MISTAKES)
def test_a_mistake_leads_to_its_key(value: dict[str, Any], loc: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        DataSpec.model_validate(value)
    assert [error["loc"] for error in caught.value.errors()] == [loc]


@pytest.mark.parametrize(("source", "loc", "message"), SOURCE_MISTAKES)
def test_a_mistake_in_a_source_leads_to_its_key(source: Any, loc: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        DataSpec.model_validate({"mixture": {"mine": 1}, "sources": {"mine": source}})
    assert [error["loc"] for error in caught.value.errors()] == [("sources", "mine", *loc)]


def test_a_spec_is_its_own_documentation() -> None:
    spec = DataSpec.model_validate(
        {
            "mixture": {"reference": 2, "recall": 1, "notes": 1},
            "sources": {
                "recall": "mqar",
                "notes": {"text": {"path": "notes/*.txt"}},
                "facts": {"facts": None},
            },
        }
    )
    assert spec.model_dump()["sources"]["notes"] == {"text": {"path": "notes/*.txt", "field": "text"}}
    assert DataSpec.model_validate(spec.model_dump()) == spec
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec


def test_declared_sources_come_before_built_in_ones() -> None:
    spec = DataSpec.model_validate({"mixture": {"mqar": 1}, "sources": {"mqar": {"mqar": {"pairs": 4}}}})
    assert spec.source("mqar").fields.model_dump()["pairs"] == 4
    assert spec.source("code") == BUILT_IN["code"]
    with pytest.raises(ValueError, match="did you mean 'facts'"):
        spec.source("fact")


def test_kinds() -> None:
    assert {name: spec.kind for name, spec in BUILT_IN.items()} == {
        "reference": "text",
        "code": "text",
        "mqar": "recall",
        "facts": "recall",
        "paraphrases": "recall",
    }


def test_sequences_must_divide_the_context() -> None:
    spec = DataSpec.model_validate(
        {
            "mixture": {"reference": 1, "a": 1, "b": 1, "facts": 1, "unused": 0},
            "sources": {"a": {"mqar": {"length": 48}}, "b": "mqar", "unused": {"mqar": {"length": 33}}},
        }
    )
    assert spec.check_context(384) == []
    assert [loc for loc, _ in spec.check_context(256)] == [("sources", "a", "mqar", "length")]
    assert [loc for loc, _ in spec.check_context(96 + 48)] == [("sources", "b", "mqar"), ("mixture", "facts")]


@given(
    st.dictionaries(
        st.sampled_from(sorted(BUILT_IN)), st.floats(0, allow_nan=False, allow_infinity=False), min_size=1
    ).filter(lambda mixture: max(mixture.values()) > 0)
)
def test_weights_sum_to_one_at_any_scale(mixture: dict[str, float]) -> None:
    weights = DataSpec(mixture=mixture).weights
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weights[name] == 0 for name, weight in mixture.items() if weight == 0)
