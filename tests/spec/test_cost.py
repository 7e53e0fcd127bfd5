"""Costs by hand, and the matmul part of FLOPs against torch's counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.building import MIXER_CASES, ids_of, inputs, label, layer_of, mixer_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from archsearch.compiler import compile_model
from archsearch.spec import ModelSpec, model_cost
from archsearch.spec.layers import Attention, Mamba1, Mamba2, mean_keys
from archsearch.spec.layers.conv import GatedConv
from archsearch.spec.layers.deltanet import GatedDeltaNet, Kda
from archsearch.spec.layers.linear_attention import Lightning
from archsearch.spec.layers.mla import Mla
from archsearch.spec.layers.rglru import RgLru
from archsearch.spec.merges import MERGES


def spec_of(*layers: Any, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"vocab_size": 100, "d_model": 64, "layers": list(layers), **fields})


def test_keys_that_a_token_sees_on_average() -> None:
    for context in (1, 2, 7, 20):
        for window in (None, 1, 3, 7, 50):
            seen = [min(t + 1, window or t + 1) for t in range(context)]
            assert mean_keys(context, window) == pytest.approx(sum(seen) / context)


def test_attention_by_hand() -> None:
    layer = layer_of("attention", {"heads": 4, "kv_heads": 2, "conv": 3, "window": 8, "qk_norm": "full"})
    # q 64 wide, k and v 32 each: 128 convolved channels.
    assert layer.params(64) == 64 * 128 + 128 * 3 + (64 + 32) + 64 * 64
    keys = (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 8 + 8) / 10
    assert layer.flops(64, 10) == 2 * 64 * 128 + 2 * 128 * 3 + 4 * 64 * keys + 2 * 64 * 64
    assert layer.flops(64, 10) - layer.flops(64, 10, project=False) == 2 * 64 * 64
    assert layer.state_bytes(64, 5, 2) == (2 * 32 * 5 + 128 * 2) * 2
    assert layer.state_bytes(64, 500, 2) == (2 * 32 * 8 + 128 * 2) * 2


def test_mamba1_by_hand() -> None:
    layer = layer_of("mamba1", {"d_state": 8, "inner_norm": "weighted", "bias": True})
    # Inner 128; dt of rank 64 / 16 = 4, B and C are 4 + 8 + 8 = 20 numbers a token.
    weights = 64 * 256 + 256 + 128 * 4 + 128 + 128 * 20 + 20 + 4 * 128 + 128 + 128 * 8 + 128 + 128 * 64 + 64
    assert layer.params(64) == weights
    assert layer_of("mamba1", {"d_state": 8, "inner_norm": "rms", "bias": True}).params(64) == weights - 20
    matmuls = 64 * 256 + 128 * 20 + 4 * 128 + 128 * 64
    assert layer.flops(64, 10) == layer.flops(64, 10_000) == 2 * (matmuls + 128 * 4) + 5 * 128 * 8
    assert layer.state_bytes(64, 10, 2) == 128 * 3 * 2 + 128 * 8 * 4
    assert layer.state_bytes(64, 10, 8) == 128 * 3 * 8 + 128 * 8 * 8


def test_mamba2_by_hand() -> None:
    layer = layer_of("mamba2", {"d_state": 16, "head_dim": 32, "groups": 2, "bias": True})
    # Inner 128 in 4 heads; x, B, C are 128 + 2 * 2 * 16 = 192 convolved channels; z adds 128, dt 4.
    assert layer.params(64) == 64 * 324 + 324 + 192 * 4 + 192 + 3 * 4 + 128 + 128 * 64 + 64
    assert layer.flops(64, 10) == 2 * 64 * 324 + 2 * 192 * 4 + 5 * 128 * 16 + 2 * 128 * 64
    assert layer.flops(64, 10) == layer.flops(64, 10_000)
    assert layer.state_bytes(64, 10, 2) == 192 * 3 * 2 + 128 * 16 * 4
    assert layer.state_bytes(64, 10, 8) == 192 * 3 * 8 + 128 * 16 * 8


def test_mlp_by_hand() -> None:
    gated, plain = layer_of("mlp", {}), layer_of("mlp", {"activation": "relu2", "bias": True})
    # 8/3 of 64 is 170.7, rounded up to 176.
    assert gated.params(64) == 64 * 352 + 176 * 64
    assert gated.flops(64, 10) == 2 * 64 * 352 + 2 * 176 * 64
    assert plain.params(64) == 64 * 256 + 256 + 256 * 64 + 64
    assert plain.flops(64, 10) == 2 * 64 * 256 * 2
    assert gated.state_bytes(64, 10, 4) == 0


def test_merges_by_hand() -> None:
    def costs(kind: str, widths: tuple[int, ...], **fields: Any) -> tuple[int, float, int]:
        words = tuple({f"branch {i}"} for i in range(len(widths)))
        merge = MERGES[kind].model_validate(fields).resolve(64, widths, words)
        return (
            merge.params(64, widths),
            merge.flops(64, widths, 10),
            merge.state_bytes(64, 10, 4),
        )

    assert costs("sum", (64, 64)) == (0, 0, 0)
    assert costs("mean", (96, 96), projection="shared", norm=True) == (2 * 96 + 96 * 64, 2 * 96 * 64, 0)
    assert costs("concat", (64, 32), scale="vector") == (96 + 96 * 64, 2 * 96 * 64, 0)
    assert costs("gate", (64,) * 3, by="token", scale="scalar") == (3 + 3 * 64, 2 * 3 * 64, 0)
    assert costs("gate", (64,) * 3, by="vector") == (3 * 64, 0, 0)
    assert costs("normed_mean", (64, 64), heads=4) == (128, 0, 0)
    assert costs("cross_attention", (64, 64), heads=4, kv_heads=1, window=4) == (
        128 + 2 * 64 * 64 + 2 * 64 * 16,
        2 * (2 * 64 * 64 + 2 * 64 * 16) + 4 * 64 * (1 + 2 + 3 + 7 * 4) / 10,
        2 * 16 * 4 * 4,
    )


def test_a_model_is_the_sum_of_its_parts() -> None:
    parallel = {"parallel": {"branches": ["mlp", ["attention", "mlp"]], "merge": "concat"}}
    spec = spec_of("mlp", parallel, norm="layernorm", embedding={"positions": {"learned": 32}})
    cost = model_cost(spec, 20)
    mlp = layer_of("mlp", {}).params(64) + 2 * 64
    attention = layer_of("attention", {}).params(64)
    # The first layer of a branch has no norm, the ones after it do.
    branches = (mlp - 128) + attention + mlp
    assert [layer.cost.params for layer in cost.layers] == [mlp, branches + 128 * 64 + 128]
    assert cost.embedding.params == 100 * 64 + 32 * 64
    assert cost.head.params == 100 * 64 + 128
    assert cost.total.params == sum(p.numel() for p in compile_model(spec).parameters())
    assert cost.total.flops == sum(layer.cost.flops for layer in cost.layers) + 2 * 100 * 64
    assert cost.layers[1].as_dict()["branches"][1][0]["path"] == "layers.1.branches.1.0"


def test_shared_layers_are_paid_once_in_weights_and_each_time_in_work() -> None:
    alone = model_cost(spec_of({"attention": {"id": "a"}}), 9)
    twice = model_cost(spec_of({"attention": {"id": "a"}}, {"share": "a"}), 9)
    assert twice.total.params == alone.total.params
    assert twice.layers[1].cost.flops == alone.layers[0].cost.flops
    assert twice.total.state_bytes == 2 * alone.total.state_bytes


def test_tying_drops_the_heads_weights_but_not_its_work() -> None:
    free, tied = model_cost(spec_of("mlp")), model_cost(spec_of("mlp", embedding={"tied": True}))
    assert free.total.params - tied.total.params == 100 * 64
    assert free.total.flops == tied.total.flops


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": 0}, "context must be at least 1, found 0"),
        ({"context": 33}, "context 33 is beyond the 32 learned positions"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; expected one of: float64, float32"),
    ],
    ids=str,
)
def test_costs_that_do_not_exist(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_cost(spec_of("mlp", embedding={"positions": {"learned": 32}}), **arguments)


def multiple_of_8(width: int) -> int:
    return -(-width // 8) * 8


@pytest.mark.parametrize(("kind", "fields"), MIXER_CASES, ids=label)
def test_matmuls_are_those_that_torch_counts(kind: str, fields: dict[str, Any]) -> None:
    """The counter sees matmuls only: neither convolutions written as shifted products nor elementwise work.

    It counts masked scores in full, where the formula counts what a token sees; and the chunked scan spends
    more matmul work than the recurrence that the formula counts. So each is exchanged for what was counted.
    """
    length, layer = 10, layer_of(kind, fields)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer_of(kind, fields)(inputs(1, length))
    expected = layer.flops(64, length)
    if isinstance(layer, Attention):
        w = layer.widths()
        # A sink is one more token, and one more channel of queries, keys and values.
        sink = 1 if layer.sinks and layer.softcap is None else 0
        width = max(layer.head_dim, layer.value_dim or 0)
        if sink or layer.value_dim:
            width = multiple_of_8(width + sink)
        counted = 4 * layer.heads * width * (length + sink) ** 2 / length
        expected += (
            counted - 2 * (w.q + w.out) * mean_keys(length, layer.window) - 2 * w.qkv * (layer.conv or 0)
        )
    elif isinstance(layer, Mla):
        query, value, _, _ = layer.widths()
        # Queries and values of different widths are padded to one.
        widest = max(query, value) // layer.heads
        widest = widest if query == value else multiple_of_8(widest)
        expected += 4 * layer.heads * widest * length - 2 * (query + value) * mean_keys(length, None)
    elif isinstance(layer, Mamba1):
        # Of the recurrence, reading the state is a matmul.
        expected -= layer.inner_width(64) * (2 * layer.d_conv + 3 * layer.d_state)
    elif isinstance(layer, GatedDeltaNet):
        inner, n = layer.inner_width(64), layer.key_dim
        expected -= 2 * layer.conv_width(64) * layer.d_conv + 7 * inner * n
        # One chunk: K K^T and Q K^T a key head, two triangles with v a head, and what enters the state.
        expected += 4 * length * n * (layer.key_heads or 0) + 4 * length * inner + 2 * inner * n
    elif isinstance(layer, Kda):
        inner, n, q = layer.inner_width(64), layer.head_dim, 16
        expected -= 2 * 3 * inner * layer.d_conv + 7 * inner * n
        # One chunk of 16: scores of second halves with first halves, two triangles with v, and the state.
        expected += (2 * q * (q - 1) * inner + 4 * q**2 * inner + 2 * q * inner * n) / length
    elif isinstance(layer, Lightning):
        inner, n = layer.inner_width(64), layer.head_dim or 0
        # One chunk, as of Mamba-2 with a group a head.
        expected += 4 * length * inner + 2 * inner * n - 5 * inner * n
    elif isinstance(layer, GatedConv):
        expected -= 2 * layer.inner_width(64) * layer.d_conv
    elif isinstance(layer, RgLru):
        expected -= layer.inner_width(64) * (2 * layer.d_conv + 5)
    elif isinstance(layer, Mamba2):
        inner, n = layer.inner_width(64), layer.d_state
        expected -= 2 * layer.conv_width(64) * layer.d_conv + 5 * inner * n
        # One chunk of `length` tokens: C B^T a group, and its product with x a head. Nobody reads the state.
        expected += 2 * length * n * layer.groups + 2 * length * inner
    assert counter.get_total_flops() == pytest.approx(length * expected)


def test_the_heads_matmul_is_counted() -> None:
    spec = spec_of("mlp")
    model = compile_model(spec)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids_of(spec, 1, 8))
    assert counter.get_total_flops() == 8 * model_cost(spec, 8).total.flops
