"""The summary of a model: contexts, keys and values apart from recurrent state, runs of equal layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.cli.summary import as_json, default_contexts, fold, kv_bytes, parse_contexts, print_summary
from archsearch.spec import model_cost, parse_spec
from archsearch.spec.cost import Cost, LayerCost


def layers_of(kinds: str) -> list[LayerCost]:
    """A layer a letter; equal letters cost the same."""
    return [LayerCost(f"layers.{i}", kind, Cost(ord(kind))) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        ("a", ["a x1"]),
        ("aaaa", ["a x4"]),
        ("ababab", ["ab x3"]),
        ("aabaab", ["aab x2"]),
        ("cabab", ["c x1", "ab x2"]),
        ("abc", ["a x1", "b x1", "c x1"]),
    ],
)
def test_fold(kinds: str, runs: list[str]) -> None:
    found = fold(layers_of(kinds))
    assert [f"{''.join(x.kind for x in run.layers)} x{run.count}" for run in found] == runs


@given(st.text("abc", min_size=1, max_size=40))
def test_folded_runs_are_all_the_layers_in_order(kinds: str) -> None:
    runs = fold(layers_of(kinds))
    assert "".join("".join(x.kind for x in run.layers) * run.count for run in runs) == kinds
    assert sum(run.cost.params for run in runs) == sum(map(ord, kinds))
    ends = [int(run.last.path.split(".")[1]) for run in runs]
    lengths = [len(run.layers) * run.count for run in runs]
    assert [end + 1 for end in ends] == [sum(lengths[: i + 1]) for i in range(len(runs))]


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        (["4096"], (4096,)),
        (["4k,32k"], (4096, 32768)),
        (["4k", "256K", " 100"], (4096, 262144, 100)),
        (["4096,4k"], (4096,)),
    ],
)
def test_contexts(texts: list[str], tokens: tuple[int, ...]) -> None:
    assert parse_contexts(texts) == tokens


@pytest.mark.parametrize("text", ["", "k", "4x", "-1", "4.5k", "4k,,8k"])
def test_contexts_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--context: expected tokens"):
        parse_contexts([text])


HYBRID = """
name: hybrid
vocab_size: 100
d_model: 32
defaults: {attention: {heads: 2}, mamba2: {d_state: 4, head_dim: 16}}
layers:
  - repeat: 3
    layers: [attention: {window: 8}, mamba2, mlp]
  - parallel:
      branches: [attention, mamba2]
      merge: {cross_attention: {query: ssm, heads: 2}}
"""


def test_keys_and_values_apart_from_recurrent_state() -> None:
    spec = parse_spec(HYBRID, "test")
    cost = model_cost(spec, context=100, dtype="bfloat16")
    one_token = 2 * 32 * 2  # keys and values of 32 channels, two bytes each
    assert kv_bytes(cost) == one_token * (3 * 8 + 100 + 100)
    state = as_json(spec, {100: cost}, "bfloat16")["contexts"]["100"]
    assert state["kv_bytes"] + state["recurrent_bytes"] == state["state_bytes"] == cost.total.state_bytes
    mamba = model_cost(parse_spec(HYBRID.replace("attention: {window: 8}, ", ""), "test"), 100, "bfloat16")
    assert mamba.total.state_bytes - kv_bytes(mamba) == state["recurrent_bytes"]


def test_contexts_end_where_learned_positions_do() -> None:
    assert default_contexts(parse_spec(HYBRID, "test")) == (4096, 32768, 262144)
    for learned, contexts in ((512, (512,)), (40_000, (4096, 32768))):
        positions = f"embedding: {{positions: {{learned: {learned}}}}}\n"
        assert default_contexts(parse_spec(HYBRID + positions, "test")) == contexts


def test_the_printed_summary(capsys: pytest.CaptureFixture[str]) -> None:
    spec = parse_spec(HYBRID, "test")
    costs = {context: model_cost(spec, context) for context in (4096, 32768)}
    print_summary(spec, costs, "float32")
    lines = capsys.readouterr().out.splitlines()
    total = costs[4096].total
    assert f"parameters {total.params:,}" in lines[1]
    assert [line.split()[0] for line in lines if line.strip().startswith(("4,096", "32,768"))] == [
        "4,096",
        "32,768",
    ]
    rows = [line.split() for line in lines if line.strip().startswith(("layers.", "branches.", "merge"))]
    assert [row[0] for row in rows] == [
        "layers.0-8",
        "layers.0",
        "layers.1",
        "layers.2",
        "layers.9",
        "branches.0.0",
        "branches.1.0",
        "merge",
    ]
    assert rows[0][1:4] == ["3", "layers", "x3"]
    assert rows[0][4] == f"{3 * sum(layer.cost.params for layer in costs[4096].layers[:3]):,}"
