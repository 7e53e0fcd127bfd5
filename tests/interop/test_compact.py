"""A stack written short is the same stack."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.interop.compact import compact, runs
from archsearch.spec import ModelSpec

ENTRIES: list[Any] = [
    {"attention": {"heads": 2, "rope": "none"}},
    {"attention": {"heads": 2, "rope": "none", "window": 4}},
    {"mlp": {"hidden": 8, "activation": "swiglu"}},
    {"mlp": {"hidden": 8, "activation": "gelu"}},
    {"parallel": {"branches": [[{"attention": {"heads": 2}}], [{"mlp": {"hidden": 8}}]], "merge": "sum"}},
]


OWNER: Any = {
    "sequential": {
        "norm": "none",
        "layers": [
            {"attention": {"heads": 2, "inputs": ["embedding"], "norm": "pre", "id": "attention"}},
            {"mlp": {"hidden": 8, "residual": False, "lora": 2, "id": "mlp"}},
        ],
    }
}
CALLS: list[Any] = [
    {"sequential": {"norm": "none", "layers": [{"share": "attention"}, {"share": "mlp", "lora": 2}]}},
    {"share": "attention", "lora": 3},
    {"share": "mlp"},
    *ENTRIES,
]


def expanded(entries: list[Any]) -> list[Any]:
    found = []
    for entry in entries:
        repeated = isinstance(entry, dict) and "repeat" in entry
        found += expanded(entry["layers"]) * entry["repeat"] if repeated else [entry]
    return found


@given(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=24))
def test_the_same_model(layers: list[Any]) -> None:
    head = {"vocab_size": 16, "d_model": 8}
    short = ModelSpec.model_validate(head | compact(layers))
    assert short.hash == ModelSpec.model_validate(head | {"layers": layers}).hash


@given(st.lists(st.sampled_from(CALLS), max_size=16))
def test_the_same_model_where_layers_are_shared(calls: list[Any]) -> None:
    head = {"vocab_size": 16, "d_model": 8}
    short = ModelSpec.model_validate(head | compact([OWNER, *calls]))
    assert short.hash == ModelSpec.model_validate(head | {"layers": [OWNER, *calls]}).hash


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_runs_expand_to_the_stack(layers: list[str]) -> None:
    assert expanded(runs(layers)) == layers


@pytest.mark.parametrize(
    ("stack", "short"),
    [
        ("aaaa", [{"repeat": 4, "layers": ["a"]}]),
        ("abab", [{"repeat": 2, "layers": ["a", "b"]}]),
        ("abcbabab", ["a", "b", "c", "b", {"repeat": 2, "layers": ["a", "b"]}]),
        ("aabaab", [{"repeat": 2, "layers": [{"repeat": 2, "layers": ["a"]}, "b"]}]),
        ("abc", ["a", "b", "c"]),
    ],
)
def test_runs(stack: str, short: list[Any]) -> None:
    assert runs(list(stack)) == short


def test_what_all_agree_on_is_a_default_and_what_is_so_anyway_is_left_out() -> None:
    layers = [{"mlp": {"hidden": 8, "bias": False}}, {"mlp": {"hidden": 8, "bias": True}}]
    assert compact(layers) == {"defaults": {"mlp": {"hidden": 8}}, "layers": ["mlp", {"mlp": {"bias": True}}]}
