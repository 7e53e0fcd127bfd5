"""What families are made of: each part gives an entry of `layers` together with the rules of its weights.

`at` is the source's name of the module; the other names default to those that most families use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch

from archsearch.interop.blueprint import Part, Trunk
from archsearch.interop.fields import Fields
from archsearch.interop.rules import CONCAT, CONV, FLAT, Join, Rule, Rules, linear

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""transformers' activation -> the gated MLP's activation here."""


def trunk(
    c: Fields,
    *,
    eps: float,
    stem: str = "model",
    embedding: str = "embed_tokens",
    norm: str = "norm",
    unit_offset: bool = False,
    scales: Mapping[str, float | None] | None = None,
    tied: bool | None = None,
) -> Trunk:
    """Embedding, final norm and head. scales: multipliers; one of 1 or None is left out. tied: default: as
    the config says."""
    tied = c.tie_word_embeddings if tied is None else tied
    path = PurePath(c._name_or_path)
    values: dict[str, Any] = {
        "name": path.name if path.name and path.suffix != ".json" else c.model_type,
        "vocab_size": c.vocab_size,
        "d_model": c.hidden_size,
        "norm": {"eps": eps} | ({"unit_offset": True} if unit_offset else {}),
        "embedding": {"tied": tied},
    }
    if std := c.get("initializer_range"):
        values["embedding"]["std"] = std
    given = {name: float(scale) for name, scale in (scales or {}).items() if scale not in (None, 1)}
    if given:
        values["scales"] = given
    rules = [
        Rule((f"{stem}.{embedding}.weight",), "embedding.weight"),
        Rule((f"{stem}.{norm}.weight",), "final_norm.weight"),
    ]
    if not tied:
        rules.append(Rule(("lm_head.weight",), "head.weight"))
    return Trunk(values, tuple(rules))


ROPE_SCALING: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_context",
    },
    "yarn": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "original_max_position_embeddings": "original_context",
    },
}
"""transformers' rope_type -> its fields, and their names here."""


def rope(
    c: Fields, harmless: Sequence[str] = (), partial: bool = False, kind_of_layer: str | None = None
) -> dict[str, Any]:
    """The field `rope` of attention, from `rope_parameters`, or from what they hold for a kind of layer.

    harmless: keys of it that mean nothing here. partial: whether transformers rotates a part of each head in
    this family; where it does not, it passes over partial_rotary_factor or fails.
    """
    held = c.rope_parameters if kind_of_layer is None else c.rope_parameters[kind_of_layer]
    given = {k: v for k, v in held.items() if v is not None and k not in ("type", *harmless)}
    kind = given.pop("rope_type", "default")
    if kind not in ROPE_SCALING:
        c.refuse("rope_parameters", f"rope_type {kind!r} is not supported")
    found: dict[str, Any] = {"theta": float(given.pop("rope_theta"))}
    fraction = float(given.pop("partial_rotary_factor", 1))
    if fraction != 1 and not partial:
        c.refuse("rope_parameters", f"transformers does not rotate a part of each head, found {fraction:g}")
    if fraction != 1:
        found["fraction"] = fraction
    scaling = {ours: given.pop(theirs) for theirs, ours in ROPE_SCALING[kind].items() if theirs in given}
    if scaling:
        found["scaling"] = {"kind": kind, **scaling}
    for name in given:
        c.refuse("rope_parameters", f"{name!r} is unknown here, and it may change what the model computes")
    return found


def width_root(c: Fields, dtype: str) -> float:
    """sqrt(d_model) as a tensor of this dtype holds it: the embeddings' multiplier in Gemma's families."""
    return float(torch.tensor(c.hidden_size**0.5, dtype=getattr(torch, dtype)))


def constant_eps(c: Fields, eps: float) -> float | None:
    """The field `norm_eps` where transformers has a constant: None where it is the model's."""
    return None if eps == c.rms_norm_eps else eps


def attention(
    at: str,
    *,
    bias: bool = False,
    output_bias: bool = False,
    qkv: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    out: str = "o_proj",
    norms: Sequence[str] = ("q_norm", "k_norm"),
    **fields: Any,
) -> Part:
    """norms: of queries and keys, where `qk_norm` is among the fields."""
    rules = linear((f"{at}.{name}" for name in qkv), "layer.qkv_proj", bias)
    rules += linear(f"{at}.{out}", "layer.out_proj", output_bias)
    if fields.get("qk_norm"):
        pairs = zip(norms, ("q_norm", "k_norm"), strict=True)
        rules += tuple(Rule((f"{at}.{name}.weight",), f"layer.{ours}.weight") for name, ours in pairs)
    return Part("attention", {"bias": bias, "output_bias": output_bias, **fields}, rules)


def gated_attention(at: str, *, heads: int, head_dim: int, kv_heads: int, **fields: Any) -> Part:
    """Attention whose q_proj gives, head by head, a query and then its gate; ours gives q, k, v, gate."""
    part = attention(at, heads=heads, head_dim=head_dim, kv_heads=kv_heads, gate="channel", **fields)
    q, kv = heads * head_dim, kv_heads * head_dim
    of_heads = torch.arange(2 * q).view(heads, 2, head_dim)
    order = torch.cat(
        [of_heads[:, 0].flatten(), torch.arange(2 * q, 2 * q + 2 * kv), of_heads[:, 1].flatten()]
    )
    return part.reordered("layer.qkv_proj", order)


def mlp(
    at: str,
    *,
    bias: bool = False,
    up: str | Sequence[str] = ("gate_proj", "up_proj"),
    down: str = "down_proj",
    **fields: Any,
) -> Part:
    """up: the gate's projection, then the values'; or the one that holds both, or that there is."""
    names = (up,) if isinstance(up, str) else up
    rules = linear((f"{at}.{name}" for name in names), "layer.up_proj", bias)
    rules += linear(f"{at}.{down}", "layer.down_proj", bias)
    return Part("mlp", {"bias": bias, **fields}, rules)


def moe(
    at: str,
    *,
    up: str = "gate_up_proj",
    gate: str = "gate",
    selection_bias: str | None = None,
    shared: Part | None = None,
    shared_gate: str | None = None,
    latent_names: Sequence[str] = (),
    bias: bool = False,
    **fields: Any,
) -> Part:
    """Experts are held side by side by both sides, the gate's rows before the values'.

    gate: the source's router. selection_bias, shared_gate, latent_names (down, up): those that it has.
    shared: its shared expert, an mlp. bias: of the latent projections, and of the shared expert.
    """
    rules = linear(f"{at}.{gate}", "layer.router")
    rules += (Rule((f"{at}.experts.{up}",), "layer.experts.up_proj"),)
    rules += (Rule((f"{at}.experts.down_proj",), "layer.experts.down_proj"),)
    if selection_bias:
        rules += (Rule((f"{at}.{selection_bias}",), "layer.router.selection_bias"),)
    for name, ours in zip(latent_names, ("latent_down", "latent_up"), strict=False):
        rules += linear(f"{at}.{name}", f"layer.{ours}", bias)
    if shared is not None:
        fields["shared"] = shared.fields["hidden"]
        rules += tuple(
            replace(rule, ours=str(rule.ours).replace("layer.", "layer.shared.", 1)) for rule in shared.rules
        )
    if shared_gate:
        rules += linear(f"{at}.{shared_gate}", "layer.shared_gate")
    given = {"selection_bias": bool(selection_bias), "shared_gate": bool(shared_gate), "bias": bias}
    return Part("moe", {**given, **fields}, rules)


def mamba2(at: str, *, bias: bool = False, conv_bias: bool = True, **fields: Any) -> Part:
    """The source's in_proj gives z, x, B, C, dt, as ours does."""
    rules = linear(f"{at}.in_proj", "layer.in_proj", bias) + conv(f"{at}.conv1d", "layer.conv", conv_bias)
    rules += tuple(Rule((f"{at}.{name}",), f"layer.{name}") for name in ("dt_bias", "A_log", "D"))
    if fields.get("gated_norm") != "none":
        rules += (Rule((f"{at}.norm.weight",), "layer.norm.weight"),)
    rules += linear(f"{at}.out_proj", "layer.out_proj", bias)
    return Part("mamba2", {"bias": bias, "conv_bias": conv_bias, **fields}, rules)


def mamba1(at: str, *, bias: bool = False, conv_bias: bool = True, **fields: Any) -> Part:
    """The source's in_proj gives x, z, its x_proj dt, B, C, as ours do; norms of those have Jamba's names."""
    rules = linear(f"{at}.in_proj", "layer.in_proj", bias) + conv(f"{at}.conv1d", "layer.conv", conv_bias)
    rules += linear(f"{at}.x_proj", "layer.x_proj") + linear(f"{at}.dt_proj", "layer.dt_proj", bias=True)
    if fields.get("inner_norm") == "weighted":
        pairs = (("dt", "dt"), ("b", "B"), ("c", "C"))
        rules += tuple(
            Rule((f"{at}.{name}_layernorm.weight",), f"layer.{ours}_norm.weight") for name, ours in pairs
        )
    rules += tuple(Rule((f"{at}.{name}",), f"layer.{name}") for name in ("A_log", "D"))
    rules += linear(f"{at}.out_proj", "layer.out_proj", bias)
    return Part("mamba1", {"bias": bias, "conv_bias": conv_bias, **fields}, rules)


def gated_deltanet(
    at: str,
    *,
    into: Sequence[str],
    join: Join = CONCAT,
    norm: str = "norm",
    out: str = "out_proj",
    **fields: Any,
) -> Part:
    """into: the projections that, joined, have the rows of q, k, v, z, b, a in this order."""
    rules = linear((f"{at}.{name}" for name in into), "layer.in_proj", join=join)
    rules += conv(f"{at}.conv1d", "layer.conv", bias=False)
    rules += tuple(Rule((f"{at}.{name}",), f"layer.{name}") for name in ("dt_bias", "A_log"))
    rules += (Rule((f"{at}.{norm}.weight",), "layer.norm.weight"),)
    return Part("gated_deltanet", fields, rules + linear(f"{at}.{out}", "layer.out_proj"))


def lightning(at: str, **fields: Any) -> Part:
    """Our in_proj gives q, k, v head by head, as the source's qkv_proj does, and then the gate.

    The source keeps its decays beside its weights; they follow from its config.
    """
    rules = linear((f"{at}.qkv_proj", f"{at}.output_gate"), "layer.in_proj")
    rules += (Rule((f"{at}.norm.weight",), "layer.norm.weight"),)
    rules += linear(f"{at}.out_proj", "layer.out_proj")
    decays = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    return Part("lightning", fields, (*rules, *(Rule((f"{at}.{name}",), None) for name in decays)))


def gated_conv(at: str, *, bias: bool, **fields: Any) -> Part:
    """The source's in_proj gives B, C, x, as ours does; its one bias is of all three modules."""
    rules = linear(f"{at}.in_proj", "layer.in_proj", bias) + conv(f"{at}.conv", "layer.conv", bias)
    rules += linear(f"{at}.out_proj", "layer.out_proj", bias)
    return Part("gated_conv", {"bias": bias, "conv_bias": bias, **fields}, rules)


def rglru(at: str, **fields: Any) -> Part:
    """Our modules carry the names of RecurrentGemma's."""
    rules = conv(f"{at}.conv_1d", "layer.conv_1d", bias=True)
    for name in ("linear_y", "linear_x", "linear_out"):
        rules += linear(f"{at}.{name}", f"layer.{name}", bias=True)
    gates = [f"{gate}_gate_{part}" for gate in ("input", "recurrent") for part in ("weight", "bias")]
    for name in ("recurrent_param", *gates):
        rules += (Rule((f"{at}.rg_lru.{name}",), f"layer.rg_lru.{name}"),)
    return Part("rglru", fields, rules)


def kda(at: str, *, into: Sequence[str], forget: str, **fields: Any) -> Part:
    """into: the projections whose rows are those of q, k, v, the decays, the gate and b, in this order.

    forget: the source's module of the decays.
    """
    rules = linear((f"{at}.{name}" for name in into), "layer.in_proj")
    rules += conv(f"{at}.conv1d", "layer.conv", bias=False)
    if fields.get("gate_rank") != "full":
        rules += linear(f"{at}.{forget}.f_b_proj", "layer.f_proj")
        rules += linear(f"{at}.g_b_proj", "layer.g_proj")
    rules += (Rule((f"{at}.{forget}.dt_bias",), "layer.dt_bias"),)
    rules += (Rule((f"{at}.{forget}.A_log",), "layer.A_log", FLAT),)
    rules += (Rule((f"{at}.o_norm.weight",), "layer.norm.weight"),)
    return Part("kda", fields, rules + linear(f"{at}.o_proj", "layer.out_proj"))


def mla(at: str, *, q_rank: int | None, gate: str | None = None, bias: bool = False, **fields: Any) -> Part:
    """gate: of the heads' outputs, one number a head, by the source's name of its projection."""
    rules = linear(f"{at}.kv_a_proj_with_mqa", "layer.kv_a_proj", bias)
    rules += (Rule((f"{at}.kv_a_layernorm.weight",), "layer.kv_norm.weight"),)
    rules += linear(f"{at}.kv_b_proj", "layer.kv_b_proj") + linear(f"{at}.o_proj", "layer.out_proj", bias)
    if q_rank is None:
        rules += linear(f"{at}.q_proj", "layer.q_proj")
    else:
        rules += linear(f"{at}.q_a_proj", "layer.q_a_proj", bias) + linear(f"{at}.q_b_proj", "layer.q_proj")
        rules += (Rule((f"{at}.q_a_layernorm.weight",), "layer.q_norm.weight"),)
    if gate:
        rules += linear(f"{at}.{gate}", "layer.gate_proj")
        fields["gate"] = "head"
    return Part("mla", {"q_rank": q_rank, "bias": bias, **fields}, rules)


def parallel(branches: Sequence[Part], merge: Any) -> Part:
    """Branches of one layer each that read the same input."""
    rules = tuple(
        rule.under(f"layer.branches.{i}.0") for i, part in enumerate(branches) for rule in part.rules
    )
    return Part("parallel", {"branches": [[part.entry] for part in branches], "merge": merge}, rules)


def sequential(layers: Sequence[Part], **fields: Any) -> Part:
    rules = tuple(rule.under(f"layer.layers.{i}") for i, part in enumerate(layers) for rule in part.rules)
    return Part("sequential", {"layers": [part.entry for part in layers], **fields}, rules)


def linear_layer(at: str) -> Part:
    return Part("linear", {}, linear(at, "layer.out_proj"))


def share(name: str) -> Part:
    """Another use of the layer with this id: none of its weights are its own."""
    return Part("share", {"share": name}, ())


def low_rank(part: Part, projection: str, rank: int, adapters: Sequence[str]) -> Part:
    """The part, or the share, with a low-rank term of its own on a projection.

    adapters: the source's, one a segment of the projection's outputs, of two matrices each.
    """
    ours = f"layer.{projection}"
    names = {f"{ours}.{name}": f"{ours}.base.{name}" for name in ("weight", "bias")}
    rules = [replace(rule, ours=names.get(rule.ours or "", rule.ours)) for rule in part.rules]
    for i, name in enumerate(adapters):
        rules += linear(f"{name}.0", f"{ours}.down.{i}") + linear(f"{name}.1", f"{ours}.up.{i}")
    return replace(part.having(lora=rank), rules=tuple(rules))


def conv(theirs: str, ours: str, bias: bool) -> Rules:
    """A depthwise convolution."""
    weight = Rule((f"{theirs}.weight",), f"{ours}.weight", CONV)
    return (weight, Rule((f"{theirs}.bias",), f"{ours}.bias")) if bias else (weight,)


def dt_limit(c: Fields) -> list[float]:
    """The field `dt_limit` of mamba2."""
    low, high = c.time_step_limit
    return [float(low), float(high)]
