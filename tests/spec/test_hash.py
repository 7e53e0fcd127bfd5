"""The canonical hash: blind to form, awake to every field; and specs that survive writing and reading."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from contract.strategies import specs
from hypothesis import given, settings
from pydantic import ValidationError

from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec, Node, model_cost, parse_spec, to_yaml
from archsearch.spec.entries import layer_kinds
from archsearch.spec.merges import MERGES


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 64, **fields})


def asking(query: int | str) -> dict[str, Any]:
    merge = {"cross_attention": {"query": query}}
    return {"parallel": {"branches": ["mlp", "mamba2"], "merge": merge}}


@settings(max_examples=200)
@given(value=specs())
def test_writing_and_reading_gives_the_same_spec(value: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate(value)
    again = parse_spec(to_yaml(spec))
    assert again == spec
    assert again.nodes == spec.nodes
    assert again.hash == spec.hash
    assert again.dump() == spec.dump()


@settings(max_examples=200)
@given(value=specs())
def test_the_written_out_model_is_the_same_model(value: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate(value)
    written = parse_spec(to_yaml(spec.resolved()))
    assert written.hash == spec.hash
    assert written.canonical() == spec.canonical()
    assert model_cost(written, 7) == model_cost(spec, 7)
    assert written.resolved() == spec.resolved()


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "repeat": (
        {"layers": [{"repeat": 2, "layers": ["mlp", {"repeat": 2, "layers": ["attention"]}]}]},
        {"layers": ["mlp", "attention", "attention", "mlp", "attention", "attention"]},
    ),
    "defaults": (
        {"defaults": {"attention": {"heads": 4, "rope": None}}, "layers": ["attention", "mlp"]},
        {"layers": [{"attention": {"heads": 4, "rope": "none"}}, "mlp"]},
    ),
    "own fields beat defaults": (
        {"defaults": {"mlp": {"hidden": 8, "bias": True}}, "layers": [{"mlp": {"expand": 2}}]},
        {"layers": [{"mlp": {"hidden": 128, "bias": True}}]},
    ),
    "pattern": (
        {"pattern": "M-(M|*-)"},
        {"layers": ["mamba2", "mlp", {"parallel": {"branches": ["mamba2", ["attention", "mlp"]]}}]},
    ),
    "pattern inside": ({"layers": ["mlp", {"pattern": "M *"}]}, {"layers": ["mlp", "mamba2", "attention"]}),
    "a branch is a layer or a list of one": (
        {"layers": [{"parallel": {"branches": [["mlp"], "attention"]}}]},
        {"layers": [{"parallel": {"branches": ["mlp", ["attention"]]}}]},
    ),
    "names": ({"name": "one", "layers": [{"mlp": {"id": "a"}}]}, {"name": "two", "layers": ["mlp"]}),
    "which name shares": (
        {"layers": [{"mlp": {"id": "a"}}, {"share": "a"}]},
        {"layers": [{"mlp": {"id": "b"}}, {"share": "b"}]},
    ),
    "derived values": (
        {"layers": [{"attention": {"heads": 4, "kv_heads": 4, "head_dim": 16, "scale": 0.25}}]},
        {"layers": [{"attention": {"heads": 4}}]},
    ),
    "a number's form": ({"layers": [{"mamba2": {"expand": 2}}]}, {"layers": [{"mamba2": {"expand": 2.0}}]}),
    "vocabulary": ({"vocab_size": 384, "tokenizer": None, "layers": ["mlp"]}, {"layers": ["mlp"]}),
    "the branch that asks": (
        {
            "layers": [
                {"parallel": {"branches": ["mlp", "mamba2"], "merge": {"cross_attention": {"query": 1}}}}
            ]
        },
        {
            "layers": [
                {"parallel": {"branches": ["mlp", "mamba2"], "merge": {"cross_attention": {"query": "ssm"}}}}
            ]
        },
    ),
    "norms said or left": (
        {"norm": {"placement": "post"}, "layers": [{"mlp": {"norm": "pre"}}, "mlp"]},
        {"layers": ["mlp", {"mlp": {"norm": "post", "residual": True}}]},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_form_does_not_matter(name: str) -> None:
    first, second = (spec_of(**fields) for fields in SAME[name])
    assert first.hash == second.hash


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "order": ({"layers": ["mlp", "attention"]}, {"layers": ["attention", "mlp"]}),
    "order of branches": (
        {"layers": [{"parallel": {"branches": ["mlp", "attention"], "merge": "subtract"}}]},
        {"layers": [{"parallel": {"branches": ["attention", "mlp"], "merge": "subtract"}}]},
    ),
    "shared or not": ({"layers": [{"mlp": {"id": "a"}}, {"share": "a"}]}, {"layers": ["mlp", "mlp"]}),
    "shared with which": (
        {"layers": [{"mlp": {"id": "a"}}, {"mlp": {"id": "b"}}, {"share": "a"}]},
        {"layers": [{"mlp": {"id": "a"}}, {"mlp": {"id": "b"}}, {"share": "b"}]},
    ),
    "width": ({"layers": ["mlp"]}, {"layers": ["mlp"], "d_model": 32}),
    "vocabulary": ({"layers": ["mlp"]}, {"layers": ["mlp"], "tokenizer": None, "vocab_size": 385}),
    "tied": ({"layers": ["mlp"]}, {"layers": ["mlp"], "embedding": {"tied": True}}),
    "initial embedding": ({"layers": ["mlp"]}, {"layers": ["mlp"], "embedding": {"std": 0.7}}),
    "positions": ({"layers": ["mlp"]}, {"layers": ["mlp"], "embedding": {"positions": {"learned": 9}}}),
    "final norm": ({"layers": ["mlp"]}, {"layers": ["mlp"], "final_norm": False}),
    "norm": ({"layers": ["mlp"]}, {"layers": ["mlp"], "norm": "layernorm"}),
    "eps": ({"layers": ["mlp"]}, {"layers": ["mlp"], "norm": {"eps": 1e-6}}),
    "placement": ({"layers": ["mlp"]}, {"layers": ["mlp"], "norm": {"placement": "post"}}),
    "embedding scale": ({"layers": ["mlp"]}, {"layers": ["mlp"], "scales": {"embedding": 2}}),
    "residual scale": ({"layers": ["mlp"]}, {"layers": ["mlp"], "scales": {"residual": 2}}),
    "softcap": ({"layers": ["mlp"]}, {"layers": ["mlp"], "scales": {"softcap": 30}}),
    "meta tokens": ({"layers": ["mlp"]}, {"layers": ["mlp"], "meta_tokens": 3}),
    "unit offset": ({"layers": ["mlp"]}, {"layers": ["mlp"], "norm": {"unit_offset": True}}),
    "in one block": ({"layers": ["mlp", "mlp"]}, {"layers": [{"sequential": {"layers": ["mlp", "mlp"]}}]}),
    "low rank": ({"layers": [{"mlp": {"id": "a"}}, "mlp"]}, {"layers": [{"mlp": {"lora": 2}}, "mlp"]}),
    "low rank of a use": (
        {"layers": [{"mlp": {"id": "a"}}, {"share": "a"}]},
        {"layers": [{"mlp": {"id": "a"}}, {"share": "a", "lora": 2}]},
    ),
    "whose output is read": (
        {"layers": [{"mlp": {"id": "a"}}, {"mlp": {"id": "b"}}, {"mlp": {"inputs": ["a"]}}]},
        {"layers": [{"mlp": {"id": "a"}}, {"mlp": {"id": "b"}}, {"mlp": {"inputs": ["b"]}}]},
    ),
    "whose keys are read": (
        {"layers": [{"attention": {"id": "a"}}, {"attention": {"id": "b"}}, {"attention": {"kv_from": "a"}}]},
        {"layers": [{"attention": {"id": "a"}}, {"attention": {"id": "b"}}, {"attention": {"kv_from": "b"}}]},
    ),
    "logits scale": ({"layers": ["mlp"]}, {"layers": ["mlp"], "scales": {"logits": 2}}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_computed_does(name: str) -> None:
    first, second = (spec_of(**fields) for fields in DIFFERENT[name])
    assert first.hash != second.hash


CANDIDATES: list[Any] = [
    ["embedding"],
    [1, 1, 2, 1, 1],
    True,
    False,
    1,
    2,
    3,
    4,
    8,
    32,
    0.05,
    0.5,
    [0.5, 0.75],
    None,
    {"theta": 7.0},
]


def candidates(annotation: Any) -> list[Any]:
    """Values that some field might take: plain ones, and the words of its type."""
    words = [word for part in (annotation, *get_args(annotation)) for word in get_args(part)]
    return CANDIDATES + [word for word in words if isinstance(word, str)]


def built(kind: str, fields: dict[str, Any]) -> ModelSpec | None:
    try:
        return spec_of(d_model=256, layers=after_what_it_reads(kind, fields))
    except ValidationError:
        return None


def resolved(node: Node) -> tuple[Any, ...]:
    return node.layer.model_dump(exclude={"norm", "residual"}), node.norm, node.residual, node.inputs


ELSEWHERE = {"id", "lora", *(field for cls in layer_kinds().values() for field in cls.references.values())}
"""Names, and fields that need a certain layer or another one beside it: held below, by example."""

LAYER_FIELDS = [
    (kind, field)
    for kind in MIXERS
    for field in layer_kinds()[kind].model_fields
    if field not in ELSEWHERE and (kind, field) != ("gated_memory", "width")  # only one value fits
]


BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("mamba1", "inner_norm_eps"): {"inner_norm": "rms"},
    ("moe", "bias"): {"shared": 8},
    ("moe", "bias_rate"): {"selection_bias": True},
    ("moe", "shared_gate"): {"shared": 8},
    ("moe", "top_groups"): {"groups": 4},
}
"""Fields that say something only beside others."""


def after_what_it_reads(kind: str, fields: dict[str, Any]) -> list[Any]:
    if kind != "gated_memory":
        return [{kind: fields}]
    return [{"mamba2": {"id": "m"}}, {kind: {"memory_from": "m"} | fields}]


@pytest.mark.parametrize(("kind", "field"), LAYER_FIELDS, ids=str)
def test_every_field_of_every_layer_counts(kind: str, field: str) -> None:
    beside = BESIDE.get((kind, field), {})
    plain = spec_of(d_model=256, layers=after_what_it_reads(kind, beside))
    changed = 0
    for value in candidates(layer_kinds()[kind].model_fields[field].annotation):
        spec = built(kind, beside | {field: value})
        if spec is not None and resolved(spec.nodes[-1]) != resolved(plain.nodes[-1]):
            changed += 1
            assert spec.hash != plain.hash, value
    assert changed


MERGE_FIELDS = [(kind, field) for kind in MERGES for field in MERGES[kind].model_fields]


@pytest.mark.parametrize(("kind", "field"), MERGE_FIELDS, ids=str)
def test_every_field_of_every_merge_counts(kind: str, field: str) -> None:
    branches = ["mlp", {"mlp": {"bias": True}}]
    plain = spec_of(d_model=256, layers=[{"parallel": {"branches": branches, "merge": kind}}])
    legal = changed = 0
    for value in candidates(MERGES[kind].model_fields[field].annotation):
        spec = built("parallel", {"branches": branches, "merge": {kind: {field: value}}})
        if spec is None:
            continue
        legal += 1
        if spec.nodes[0].merge != plain.nodes[0].merge:
            changed += 1
            assert spec.hash != plain.hash, value
    # A field that only one value fits, such as the norm of normed_mean, cannot change.
    assert changed or legal <= 1
