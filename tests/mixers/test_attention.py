"""The attention layer against formulas written out, and layers that read another's keys and values.

Shape suffixes: b batch, l position, d d_model, h query heads, e head_dim.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.building import ids_of, inputs, layer_of, mixer_of, model_of, relative
from torch import Tensor

from archsearch.mixers.attention import AttentionMixer
from archsearch.mixers.base import Call, Surroundings
from archsearch.mixers.rope import Rotary
from archsearch.spec import ModelSpec, model_cost
from archsearch.spec.errors import FieldError
from archsearch.spec.layers import Attention
from mixers.test_attend import brute_force

FORMS: list[dict[str, Any]] = [
    {},
    {"qk_norm": "head", "bias": True, "output_bias": True},
    {"qk_norm": "full", "rope": {"theta": 100.0, "interleaved": True}},
    {"gate": "head", "bias": True, "window": 3},
    {"gate": "channel", "sinks": True, "rope": None},
    {"softcap": 0.8, "scale": 1.0, "sinks": True, "window": 4, "gate": "channel"},
]


def rms(t: Tensor, weight: Tensor, width: int) -> Tensor:
    grouped = t.unflatten(-1, (-1, width))
    return (grouped * (grouped.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight).flatten(-2)


def naive(mixer: Any, x_bld: Tensor) -> Tensor:
    """The layer with 4 query and 2 key/value heads of 16 channels, as its formula reads."""
    spec, weight = mixer.spec, mixer.qkv_proj.weight
    y = x_bld @ weight.T + (mixer.qkv_proj.bias if spec.bias else 0)
    q, k, v, gate = y[..., :64], y[..., 64:96], y[..., 96:128], y[..., 128:]
    if spec.qk_norm is not None:
        widths = (16, 16) if spec.qk_norm == "head" else (64, 32)
        q, k = rms(q, mixer.q_norm.weight, widths[0]), rms(k, mixer.k_norm.weight, widths[1])
    q, k, v = (t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in (q, k, v))
    if spec.rope is not None:
        rotary = Rotary(spec.rope, 16)
        q, k = rotary(q, 0), rotary(k, 0)
    forms = {"softcap": spec.softcap, "sinks_h": mixer.sinks}
    y = brute_force(q, k, v, scale=spec.scale, window=spec.window, **forms).transpose(1, 2)
    if spec.gate == "head":
        y = y * gate.sigmoid()[..., None]
    elif spec.gate == "channel":
        y = y * gate.sigmoid().unflatten(-1, (4, 16))
    out = mixer.out_proj
    return y.flatten(2) @ out.weight.T + (out.bias if spec.output_bias else 0)


@pytest.mark.parametrize("fields", FORMS, ids=lambda f: "+".join(f) or "bare")
def test_layer_by_hand(fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of("attention", {"heads": 4, "kv_heads": 2, **fields}), inputs(2, 9)
    with torch.no_grad():
        truth = naive(mixer, x_bld)
        assert relative(mixer(x_bld), truth) <= 1e-12
        y_bld, state = mixer.prefill(x_bld[:, :5])
        for t in range(5, 9):
            y_bd, state = mixer.step(x_bld[:, t], state)
            assert relative(y_bd, truth[:, t]) <= 1e-12
    assert relative(y_bld, truth[:, :5]) <= 1e-12


def test_the_plain_path_builds_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Tensor, **given: Any) -> Tensor:
        seen.append(given)
        return fused(*args, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for fields in ({}, {"window": 30}, {"sinks": True}, {"gate": "head"}):
        mixer_of("attention", {"heads": 4, **fields})(inputs(1, 20))
    assert [given["is_causal"] for given in seen] == [True] * 4
    assert [given["attn_mask"] for given in seen] == [None] * 4


def test_padding_that_nobody_masks_is_seen() -> None:
    """What the padding contract rests on: the mask is what hides it."""
    mixer, x_bld = mixer_of("attention", {"heads": 4, "bias": True, "conv": 3}), inputs(1, 8)
    mask_bl = torch.arange(8)[None] >= 3
    with torch.no_grad():
        alone, hidden = mixer(x_bld[:, 3:]), mixer(x_bld, Call(mask=mask_bl))[:, 3:]
        assert relative(hidden, alone) <= 1e-12
        assert relative(mixer(x_bld)[:, 3:], alone) > 1e-3


def test_costs_of_the_further_forms_by_hand() -> None:
    layer = layer_of("attention", {"heads": 4, "kv_heads": 2, "gate": "head", "sinks": True, "bias": True})
    assert layer.params(64) == 65 * (64 + 64 + 4) + 4 + 64 * 64
    assert layer.projections(64) == {"qkv_proj": (64, 32, 32, 4)}
    wide = layer_of("attention", {"heads": 4, "gate": "channel", "inputs": ["embedding"]})
    assert wide.params(64) == 128 * 256 + 64 * 64
    assert wide.flops(64, 1) == 2 * 128 * 256 + 4 * 64 + 2 * 64 * 64
    fields = {"heads": 4, "gate": "channel", "qk_norm": "head", "conv": 3, "kv_from": "a"}
    reader = layer_of("attention", {**fields, "kv_heads": 2, "window": 8})
    assert reader.params(64) == 64 * 128 + 64 * 3 + 16 + 64 * 64
    assert reader.state_bytes(64, 100, 4) == 64 * 2 * 4
    assert reader.projections(64) == {"qkv_proj": (64, 64)}
    assert reader.flops(64, 1) == 2 * 64 * 128 + 2 * 64 * 3 + 4 * 64 + 2 * 64 * 64


def model_spec(source: dict[str, Any], *readers: dict[str, Any]) -> ModelSpec:
    """A source of keys and values, a layer between, and readers."""
    layers = [{"attention": {"id": "a", **source}}, {"mlp": {"hidden": 8}}]
    layers += [{"attention": {"kv_from": "a", **reader}} for reader in readers]
    return ModelSpec.model_validate({"vocab_size": 19, "d_model": 24, "layers": layers})


READERS = [
    ({"heads": 4, "kv_heads": 2, "head_dim": 6}, {"heads": 2}, {"heads": 6, "gate": "head"}),
    ({"heads": 2, "window": 5}, {"heads": 4, "sinks": True}, {"heads": 2, "conv": 3, "qk_norm": "full"}),
    ({"heads": 3, "rope": "none", "conv": 2}, {"heads": 3, "softcap": 1.0, "qk_norm": "head", "bias": True}),
    ({"heads": 1, "head_dim": 8, "rope": {"theta": 9.0}, "window": 1}, {"heads": 3, "output_bias": True}),
]


@pytest.mark.parametrize("layers", READERS, ids=lambda layers: f"{len(layers) - 1}-{'+'.join(layers[0])}")
def test_readers_step_as_they_run_and_keep_nothing(layers: tuple[dict[str, Any], ...]) -> None:
    spec = model_spec(*layers)
    model, ids_bl = model_of(spec), ids_of(spec, 2, 12)
    cost = model_cost(spec, 12, "float64")
    assert sum(p.numel() for p in model.parameters()) == cost.total.params
    with torch.no_grad():
        truth = model(ids_bl)
        _, state = model.prefill(ids_bl[:, :3])
        for t in range(3, 12):
            logits, before = model.step(ids_bl[:, t], state)[0], state
            again, state = model.step(ids_bl[:, t], before)
            assert torch.equal(logits, again)
            assert relative(logits, truth[:, t]) <= 1e-11
    assert state.bytes() == 2 * cost.total.state_bytes
    for layer, node in zip(cost.layers[2:], spec.nodes[2:], strict=True):
        conv = node.layer.conv - 1 if node.layer.conv else 0
        assert layer.cost.state_bytes == conv * node.layer.inner_width(24) * 8


@pytest.mark.parametrize("layers", READERS, ids=lambda layers: f"{len(layers) - 1}-{'+'.join(layers[0])}")
def test_readers_in_a_padded_batch(layers: tuple[dict[str, Any], ...]) -> None:
    spec = model_spec(*layers)
    model, ids_bl = model_of(spec), ids_of(spec, 2, 11)
    mask_bl = torch.arange(11) >= torch.tensor([[0], [4]])
    with torch.no_grad():
        truth = model(ids_bl[1:, 4:])
        logits, state = model.prefill(ids_bl[:, :8], Call(mask=mask_bl[:, :8]))
        assert relative(logits[1:, 4:], truth[:, :4]) <= 1e-10
        for t in range(8, 11):
            logits, state = model.step(ids_bl[:, t], state)
            assert relative(logits[1], truth[0, t - 4]) <= 1e-10


def test_a_reader_computes_what_copied_projections_would() -> None:
    """A reader of a layer's keys and values, beside a layer that makes the same ones from the same input."""
    fields = {"heads": 4, "kv_heads": 2, "rope": {"theta": 50.0}, "window": 4}
    own = mixer_of("attention", fields, d_model=24)
    layer = Attention(heads=4, kv_from="a").reading({"kv": own.spec}, 24).resolve(24)
    reader = AttentionMixer(layer, Surroundings(24)).double()
    x_bld = inputs(2, 9, 24)
    with torch.no_grad():
        reader.qkv_proj.weight.copy_(own.qkv_proj.weight[:24])
        reader.out_proj.weight.copy_(own.out_proj.weight)
        own.telling = reader.reading = {"kv": "the stream"}
        call = Call()
        assert torch.equal(own(x_bld, call), reader(x_bld, call))
        assert list(call.streams) == ["the stream"]


def test_gradients_reach_the_keys_through_readers() -> None:
    spec = model_spec({"heads": 2}, {"heads": 2}, {"heads": 4, "sinks": True})
    model = model_of(spec)
    model(ids_of(spec, 2, 9)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("reader", "field", "message"),
    [
        (
            {"kv_heads": 1},
            "kv_heads",
            "expected kv_heads 2, that of 'a', whose .* found 1",
        ),
        ({"head_dim": 8}, "head_dim", "expected head_dim 6, that of 'a', .* found 8"),
        ({"window": None}, "window", "expected window 5, that of 'a', .* found none"),
        ({"window": 4}, "window", "expected window 5, that of 'a', .* found 4"),
        ({"rope": None}, "rope", r"expected rope \{'theta': 7.0\}, that of 'a', .* found none"),
        ({"heads": 3}, "kv_heads", "2 kv_heads do not divide 3 heads"),
    ],
    ids=str,
)
def test_readers_do_not_change_what_they_read(reader: dict[str, Any], field: str, message: str) -> None:
    source = Attention.model_validate(
        {"heads": 4, "kv_heads": 2, "head_dim": 6, "window": 5, "rope": {"theta": 7.0}}
    ).resolve(24)
    layer = Attention.model_validate({"heads": 4, "kv_from": "a", **reader})
    with pytest.raises(FieldError, match=message) as raised:
        layer.reading({"kv": source}, 24).resolve(24)
    assert raised.value.field == field


def test_readers_may_repeat_what_they_read_but_not_read_readers() -> None:
    source = Attention(heads=4, kv_heads=2, window=5).resolve(24)
    reader = Attention(heads=2, kv_from="a").reading({"kv": source}, 24).resolve(24)
    assert (reader.kv_heads, reader.head_dim, reader.window) == (2, 6, 5)
    again = Attention.model_validate(reader.model_dump())
    assert again.reading({"kv": source}, 24).resolve(24) == reader
    with pytest.raises(FieldError, match="'b' itself reads those of 'a'; expected 'a'"):
        Attention(kv_from="b").reading({"kv": reader}, 24)
