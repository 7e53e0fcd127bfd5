"""Latent attention against its formulas, and against transformers' modules with the same weights.

Shape suffixes: b batch, l position, d d_model, h heads, n/r channels without/with positions, k latent.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from contract.building import ids_of, inputs, layer_of, mixer_of, model_of, relative
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from archsearch.mixers import mla as module
from archsearch.mixers.base import Call
from archsearch.mixers.rope import Rotary
from archsearch.spec import ModelSpec
from archsearch.spec.errors import FieldError
from archsearch.spec.layers.mla import Mla
from mixers.test_attend import brute_force

SIZES: dict[str, Any] = {"heads": 4, "kv_rank": 12, "nope_dim": 6, "rope_dim": 4, "value_dim": 5}
FORMS: list[dict[str, Any]] = [
    {},
    {"rope": None, "gate": "head"},
    {"q_rank": 10, "bias": True, "rope": {"theta": 20.0, "interleaved": True}},
    {"gate": "channel", "norm_eps": 0.1, "scale": 0.9, "value_dim": 13},
]


def rms(t: Tensor, norm: Any) -> Tensor:
    return t * (t.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def naive(mixer: Any, x_bld: Tensor) -> Tensor:
    """Keys and values of every head of every token, and attention one query at a time."""
    spec = mixer.spec
    n, r, v = spec.nope_dim, spec.rope_dim, spec.value_dim
    q_in = x_bld if spec.q_rank is None else rms(linear(x_bld, mixer.q_a_proj), mixer.q_norm)
    latent = linear(x_bld, mixer.kv_a_proj)
    c, shared = rms(latent[..., : spec.kv_rank], mixer.kv_norm), latent[:, None, :, spec.kv_rank :]
    rotary = Rotary(spec.rope, r) if spec.rope else None
    if rotary is not None:
        shared = rotary(shared, 0)
    queries, keys, values = [], [], []
    for h in range(spec.heads):
        q = q_in @ mixer.q_proj.weight[h * (n + r) : (h + 1) * (n + r)].T
        rotated = q[:, None, :, n:]
        queries.append(torch.cat([q[..., :n], (rotary(rotated, 0) if rotary else rotated)[:, 0]], dim=-1))
        up = mixer.kv_b_proj.weight[h * (n + v) : (h + 1) * (n + v)]
        keys.append(torch.cat([c @ up[:n].T, shared[:, 0]], dim=-1))
        values.append(c @ up[n:].T)
    q, k, v = (torch.stack(t, dim=1) for t in (queries, keys, values))
    y = brute_force(q, k, v, scale=spec.scale).transpose(1, 2)
    if spec.gate is not None:
        y = y * linear(x_bld, mixer.gate_proj).sigmoid().unflatten(-1, (spec.heads, -1))
    return linear(y.flatten(2), mixer.out_proj)


@pytest.mark.parametrize("fields", FORMS, ids=lambda f: "+".join(f) or "bare")
def test_layer_by_hand(fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of("mla", SIZES | fields), inputs(2, 8)
    with torch.no_grad():
        truth = naive(mixer, x_bld)
        assert relative(mixer(x_bld), truth) <= 1e-12
        _, state = mixer.prefill(x_bld[:, :3])
        for t in range(3, 8):
            y_bd, state = mixer.step(x_bld[:, t], state)
            assert relative(y_bd, truth[:, t]) <= 1e-12


def test_a_step_does_not_expand_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of a step is the scores or the cache, not the keys and values of all heads."""
    mixer = mixer_of("mla", {"heads": 8, "kv_rank": 8, "nope_dim": 32, "rope_dim": 2})
    seen: list[tuple[int, ...]] = []
    explicit = module.explicit_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, *args: Any, **given: Any) -> Tensor:
        seen.append((*k.shape, *v.shape))
        return explicit(q, k, v, *args, **given)

    monkeypatch.setattr(module, "explicit_attention", watched)
    with torch.no_grad():
        _, state = mixer.prefill(inputs(1, 50))
        with FlopCounterMode(display=False) as counter:
            _, state = mixer.step(inputs(1, 1)[:, 0], state)
    assert seen == [(1, 1, 51, 10, 1, 1, 51, 8)]
    weights = 64 * (8 * 34 + 10) + 8 * 8 * 64 + 256 * 64
    assert counter.get_total_flops() == 2 * weights + 2 * 8 * 51 * (10 + 8)


def test_costs_by_hand() -> None:
    layer = layer_of("mla", SIZES | {"gate": "head", "bias": True})
    weights = 64 * 40 + 64 * 16 + 12 * 4 * 11 + 64 * 4 + 20 * 64
    assert layer.params(64) == weights + 12 + 16 + 64
    assert layer.params(64, project=False) == weights - 20 * 64 + 12 + 16
    assert layer.flops(64, 3) == 2 * weights + 2 * (40 + 20) * 2
    assert layer.state_bytes(64, 100, 2) == 16 * 100 * 2
    low = layer_of("mla", SIZES | {"q_rank": 7, "inputs": ["embedding"]})
    assert low.params(64) == 128 * 7 + 7 + 7 * 40 + 128 * 16 + 12 + 12 * 44 + 20 * 64
    assert low.projections(64) == {"kv_a_proj": (16,), "q_a_proj": (7,)}


def test_defaults_have_the_proportions_of_the_paper() -> None:
    layer = layer_of("mla", {"nope_dim": 32}, 192)
    assert (layer.heads, layer.kv_rank, layer.rope_dim, layer.value_dim) == (3, 128, 16, 32)
    assert layer.scale == 48**-0.5
    with pytest.raises(FieldError, match="rotates 3 of 3 channels a head; expected an even number"):
        layer_of("mla", {"rope_dim": 3})


def test_padding_is_never_attended_to() -> None:
    spec = ModelSpec.model_validate(
        {"vocab_size": 13, "d_model": 16, "layers": [{"mla": SIZES | {"bias": True}}, {"mla": SIZES}]}
    )
    model, ids_bl = model_of(spec), ids_of(spec, 2, 9)
    mask_bl = torch.arange(9) >= torch.tensor([[5], [0]])
    with torch.no_grad():
        truth = model(ids_bl[:1, 5:])
        logits, state = model.prefill(ids_bl[:, :7], Call(mask=mask_bl[:, :7]))
        assert relative(logits[:1, 5:], truth[:, :2]) <= 1e-11
        for t in (7, 8):
            logits, state = model.step(ids_bl[:, t], state)
            assert relative(logits[0], truth[0, t - 5]) <= 1e-11


PUBLISHED = [
    ("deepseek_v3", "DeepseekV3", {"rope": {"interleaved": True}, "q_rank": 10, "bias": True}),
    ("deepseek_v3", "DeepseekV3", {"rope": {"theta": 99.0}}),
    ("kimi_linear", "KimiLinear", {"rope": None}),
    ("bailing_hybrid", "BailingHybrid", {"rope": {"interleaved": True}, "gate": "head"}),
]


@pytest.mark.parametrize(("package", "name", "fields"), PUBLISHED, ids=str)
def test_is_the_module_that_transformers_has(package: str, name: str, fields: dict[str, Any]) -> None:
    """Weights are copied as they are, projection by projection."""
    pytest.importorskip("transformers")
    theirs = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    config_of = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    given: dict[str, Any] = {"q_lora_rank": fields.get("q_rank")} if package == "deepseek_v3" else {}
    if fields["rope"] is not None:
        theta = fields["rope"].get("theta", 10_000.0)
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if package == "deepseek_v3":
        given["rope_interleave"] = fields["rope"].get("interleaved", False)
    config = getattr(config_of, f"{name}Config")(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=12,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        head_dim=4,
        num_hidden_layers=1,
        attention_bias=fields.get("bias", False),
        attn_implementation="eager",
        **given,
    )
    mixer = mixer_of("mla", SIZES | fields | {"norm_eps": 1e-6})
    attention = getattr(theirs, f"{name}Attention")(config, 0).double().eval()
    names = {"o_proj": "out_proj", "g_proj": "gate_proj", "kv_a_proj_with_mqa": "kv_a_proj"}
    names |= {"q_b_proj": "q_proj", "q_a_layernorm": "q_norm", "kv_a_layernorm": "kv_norm"}
    ours = mixer.state_dict()
    weights = {}
    for key in attention.state_dict():
        part, _, last = key.partition(".")
        weights[key] = ours.pop(f"{names.get(part, part)}.{last}")
    assert not ours
    attention.load_state_dict(weights)
    x_bld = inputs(2, 9)
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    given = {"hidden_states": x_bld, "attention_mask": mask}
    if fields["rope"] is not None:
        rotary = getattr(theirs, f"{name}RotaryEmbedding")(config)
        given["position_embeddings"] = rotary(x_bld, torch.arange(9)[None])
    with torch.no_grad():
        truth = attention(**given)[0]
        # Their softmax is in float32, and so are their angles.
        assert relative(mixer(x_bld), truth) <= 2e-6


def test_fields_as_words() -> None:
    layer = Mla.model_validate({"rope": "none", "q_rank": "none", "gate": "none"})
    assert (layer.rope, layer.q_rank, layer.gate) == (None, None, None)
