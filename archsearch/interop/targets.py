"""What transformers' configs call our fields, and which families an export may be written as.

A proposal may be wrong: whoever uses one reads it back with the family's own import table first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from archsearch.interop.function import TINY
from archsearch.interop.parts import GATED, ROPE_SCALING
from archsearch.spec.graph import Node
from archsearch.spec.layers import Rope
from archsearch.spec.model import ModelSpec

Config = dict[str, Any]
Reader = Callable[[Any, ModelSpec], Any]
"""A resolved layer (or the spec itself) and its model -> a config field's value."""

ACTIVATIONS = {ours: theirs for theirs, ours in GATED.items() if theirs != "swish"} | {
    "relu2": "relu2",
    "relu": "relu",
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}


def of(name: str) -> Reader:
    """The layer's field of this name, as it is."""
    return lambda layer, spec: getattr(layer, name)


def activation(layer: Any, spec: ModelSpec) -> str:
    return ACTIVATIONS.get(layer.activation, layer.activation)


def rope(layer: Any, spec: ModelSpec) -> Config | None:
    """`rope_parameters`; the import table refuses what this cannot say."""
    given: Rope | None = layer.rope
    if given is None:
        return None
    kind = given.scaling.kind if given.scaling else "default"
    found: Config = {"rope_type": kind, "rope_theta": given.theta, "partial_rotary_factor": given.fraction}
    for theirs, ours in ROPE_SCALING.get(kind, {}).items():
        if (value := getattr(given.scaling, ours)) is not None:
            found[theirs] = value
    return found


def _whole(number: float) -> float:
    """An int where it is one: some configs insist."""
    return round(number) if abs(number - round(number)) < 1e-9 * abs(number) else number


TRUNK: dict[str, Reader] = {
    "vocab_size": lambda spec, _: spec.vocab,
    "hidden_size": of("d_model"),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "norm_eps"), lambda spec, _: spec.norm.eps),
    "tie_word_embeddings": lambda spec, _: spec.embedding.tied,
    "initializer_range": lambda spec, _: spec.embedding.std,
    "embedding_multiplier": lambda spec, _: spec.scales.embedding,
    "residual_multiplier": lambda spec, _: spec.scales.residual,
    "logits_scaling": lambda spec, _: 1 / spec.scales.logits,
    "lm_head_multiplier": lambda spec, _: spec.scales.logits,
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap"), lambda spec, _: spec.scales.softcap),
}

LAYERS: dict[str, dict[str, Reader]] = {
    "attention": {
        "num_attention_heads": of("heads"),
        "num_key_value_heads": of("kv_heads"),
        **dict.fromkeys(("head_dim", "attention_head_dim"), of("head_dim")),
        "attention_bias": of("bias"),
        "rope_parameters": rope,
        "position_embedding_type": lambda a, _: "rope" if a.rope else None,
        "attention_multiplier": of("scale"),
        "query_pre_attn_scalar": lambda a, _: _whole(a.scale**-2),
        "key_multiplier": lambda a, _: a.scale * a.head_dim**0.5,
        "attn_logit_softcapping": of("softcap"),
        "use_attention_gate": lambda a, _: a.gate == "head",
        "use_mem_rope": lambda a, _: a.rope is not None,
        "use_shared_attention_adapter": lambda a, _: a.lora is not None,
        "attention_in_multiplier": of("in_scale"),
        "attention_out_multiplier": of("out_scale"),
        "full_attn_alpha_factor": of("skip_scale"),
        "full_attn_beta_factor": of("out_scale"),
    },
    "mamba2": {
        **dict.fromkeys(
            ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads"),
            lambda m, spec: m.head_count(spec.d_model),
        ),
        **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "head_dim"), of("head_dim")),
        **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), of("groups")),
        **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), of("d_state")),
        **dict.fromkeys(("mamba_d_conv", "conv_kernel"), of("d_conv")),
        **dict.fromkeys(("mamba_expand", "expand"), lambda m, _: _whole(m.expand)),
        **dict.fromkeys(("mamba_conv_bias", "use_conv_bias"), of("conv_bias")),
        **dict.fromkeys(("mamba_proj_bias", "use_bias", "projectors_bias", "add_bias_linear"), of("bias")),
        "mamba_d_ssm": lambda m, spec: m.inner_width(spec.d_model),
        "mamba_rms_norm": lambda m, _: m.gated_norm != "none",
        "mamba_norm_before_gate": lambda m, _: m.gated_norm == "before",
        "time_step_limit": of("dt_limit"),
        "time_step_min": of("dt_min"),
        "time_step_max": of("dt_max"),
        "time_step_floor": of("dt_floor"),
        "ssm_multipliers": lambda m, _: list(m.multipliers or (1.0,) * 5),
        "ssm_in_multiplier": of("in_scale"),
        "ssm_out_multiplier": of("out_scale"),
    },
    "mamba1": {
        **dict.fromkeys(("mamba_d_state", "state_size"), of("d_state")),
        **dict.fromkeys(("mamba_d_conv", "conv_kernel"), of("d_conv")),
        **dict.fromkeys(("mamba_expand", "expand"), lambda m, _: _whole(m.expand)),
        **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), of("dt_rank")),
        **dict.fromkeys(("mamba_conv_bias", "use_conv_bias"), of("conv_bias")),
        **dict.fromkeys(("mamba_proj_bias", "use_bias"), of("bias")),
        "n_mamba_heads": of("heads"),
        "mixer_rms_eps": lambda m, spec: m.inner_norm_eps or spec.norm.eps,
        "time_step_min": of("dt_min"),
        "time_step_max": of("dt_max"),
        "time_step_floor": of("dt_floor"),
        "time_step_init_scheme": of("dt_init"),
    },
    "gated_deltanet": {
        "linear_num_key_heads": of("key_heads"),
        "linear_num_value_heads": of("value_heads"),
        "linear_key_head_dim": of("key_dim"),
        "linear_value_head_dim": of("value_dim"),
        "linear_conv_kernel_dim": of("d_conv"),
        "linear_allow_neg_eigval": lambda d, _: d.beta_scale == 2,
        "linear_dt_min": of("dt_min"),
        "linear_dt_max": of("dt_max"),
        "linear_dt_init_floor": of("dt_floor"),
        "linear_a_log_min": lambda d, _: d.A_init[0],
        "linear_a_log_max": lambda d, _: d.A_init[1],
    },
    "gated_conv": {"conv_L_cache": of("d_conv"), "conv_bias": of("bias")},
    "rglru": {"lru_width": of("width"), "num_attention_heads": of("heads"), "conv1d_width": of("d_conv")},
    "kda": {
        "linear_num_heads": of("heads"),
        **dict.fromkeys(("linear_head_dim", "head_dim"), of("head_dim")),
        **dict.fromkeys(("linear_conv_kernel_dim", "short_conv_kernel_size"), of("d_conv")),
        "kda_safe_gate": lambda k, _: k.decay_bound is not None,
        "kda_lower_bound": lambda k, _: -(k.decay_bound or 5.0),
    },
    "lightning": {
        "linear_attn_alpha_factor": of("skip_scale"),
        "linear_attn_beta_factor": of("out_scale"),
    },
    "mla": {
        "num_attention_heads": of("heads"),
        "num_key_value_heads": of("heads"),
        "q_lora_rank": of("q_rank"),
        "kv_lora_rank": of("kv_rank"),
        "qk_nope_head_dim": of("nope_dim"),
        "qk_rope_head_dim": of("rope_dim"),
        "v_head_dim": of("value_dim"),
        "attention_bias": of("bias"),
        "rope_parameters": rope,
    },
    "mlp": {
        **dict.fromkeys(("intermediate_size", "shared_intermediate_size"), of("hidden")),
        **dict.fromkeys(("hidden_act", "hidden_activation", "mlp_hidden_act"), activation),
        "mlp_bias": of("bias"),
        "adapter_rank": of("lora"),
        "mlp_multipliers": lambda m, _: [m.gate_scale, m.out_scale],
    },
    "moe": {
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), of("experts")),
        "num_experts_per_tok": of("top_k"),
        **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), of("hidden")),
        **dict.fromkeys(("hidden_act", "mlp_hidden_act"), activation),
        **dict.fromkeys(
            ("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size"),
            lambda m, _: m.shared or 0,
        ),
        "shared_intermediate_size": lambda m, _: m.shared or 0,
        "n_shared_experts": lambda m, _: (m.shared or 0) // m.hidden,
        "norm_topk_prob": of("renormalise"),
        "routed_scaling_factor": of("routed_scale"),
        "n_group": of("groups"),
        "topk_group": of("top_groups"),
        "moe_latent_size": of("latent"),
        "use_expert_bias": of("selection_bias"),
        "mlp_bias": of("bias"),
        "mlp_alpha_factor": of("skip_scale"),
        "mlp_beta_factor": of("out_scale"),
    },
}
"""Kind -> the names that configs have for its fields. Where two kinds would give a name, the kind that a
target lists first does."""


def word(node: Node) -> str:
    """What `layer_types` calls a layer."""
    if node.kind in ("attention", "mla"):
        return "sliding_attention" if getattr(node.layer, "window", None) else "full_attention"
    words = {"gated_conv": "conv", "sequential": "hybrid", "mlp": "mlp", "moe": "moe"}
    return words.get(node.kind, "linear_attention")


@dataclass(frozen=True)
class Layout:
    """A spec as configs see it: `units`, the nodes of each of their layers, and the first layer of a kind."""

    spec: ModelSpec
    units: Sequence[tuple[Node, ...]]

    @property
    def nodes(self) -> Iterator[Node]:
        return (inner for node in self.spec.nodes for inner in node.walk())

    def first(self, kind: str) -> Any:
        return next((node.layer for node in self.nodes if node.kind == kind), None)

    def words(self) -> list[str]:
        return [word(unit[0]) for unit in self.units]


@dataclass(frozen=True)
class Target:
    """A family that an export may be written as.

    model_type: as in config.json. kinds: of the layers that it has. pair: whether a layer of its config is
    a mixer and a channel mixer. mixed: whether its cache needs attention and recurrent layers both. extra:
    fields that have no common name, or another meaning here. shares: whether layers may be used again.
    """

    model_type: str
    kinds: tuple[str, ...]
    pair: bool = True
    mixed: bool = False
    shares: bool = False
    extra: Callable[[Layout], Config] = field(default=lambda layout: {})


class Mismatch(Exception):
    """Why a target is not the spec's."""


def _clamped(layout: Layout) -> Config:
    # Step sizes are clamped at time_step_min, which is above 0.
    return {"time_step_min": max(TINY, layout.first("mamba2").dt_limit[0])}


def _falcon_h1(layout: Layout) -> Config:
    mamba2 = layout.first("mamba2")
    if mamba2.gated_norm == "before" and mamba2.groups > 1:
        raise Mismatch("transformers fails to decode a norm before the gate where there are groups")
    return {}


def _zamba2(layout: Layout) -> Config:
    blocks = sum(node.kind == "mlp" and node.owner is None for node in layout.nodes)
    return _clamped(layout) | {"num_mem_blocks": blocks}


def _lfm3(layout: Layout) -> Config:
    """Rotations by kind of layer; of a head's fastest pairs alone they are called proportional."""
    ropes = {}
    for unit in layout.units:
        layer: Any = unit[0].layer
        if unit[0].kind == "attention" and layer.rope is not None:
            half, turned = layer.head_dim // 2, layer.rope.rotary_dim(layer.head_dim) // 2
            part = {"rope_type": "proportional", "partial_rotary_factor": turned / half}
            theta = {"rope_theta": layer.rope.theta ** (half / turned)}
            ropes[word(unit[0])] = theta | (part if turned < half else {"rope_type": "default"})
    sandwich = layout.spec.nodes[0].norm == "sandwich"
    return _gemma2(layout) | {"rope_parameters": ropes, "use_sandwich_norm": sandwich}


def _granite(layout: Layout) -> Config:
    return {} if layout.first("moe") else {"num_local_experts": 0}


def _bamba(layout: Layout) -> Config:
    return {"attn_layer_indices": [i for i, kind in enumerate(layout.words()) if kind == "full_attention"]}


def _lfm2(layout: Layout) -> Config:
    return {"block_auto_adjust_ff_dim": False}


def _lfm2_moe(layout: Layout) -> Config:
    return {"num_dense_layers": sum(unit[-1].kind == "mlp" for unit in layout.units)}


def _qwen3_next(layout: Layout) -> Config:
    dense = [i for i, unit in enumerate(layout.units) if unit[-1].kind == "mlp"]
    return {"mlp_only_layers": dense} if layout.first("moe") else {"num_experts": 0}


def _gemma2(layout: Layout) -> Config:
    """The first window; where others differ, the table does not give the same spec back."""
    windowed = [unit[0].layer for unit in layout.units if word(unit[0]) == "sliding_attention"]
    return {"sliding_window": getattr(windowed[0], "window", None)} if windowed else {}


def _qwen3(layout: Layout) -> Config:
    return _gemma2(layout) | {"use_sliding_window": "sliding_attention" in layout.words()}


def _minimax(layout: Layout) -> Config:
    # Its attention layers are all windowed, or none is, under one word.
    words = ["full_attention" if word == "sliding_attention" else word for word in layout.words()]
    window = layout.first("attention").window
    if window is not None and words[0] != "full_attention":
        raise Mismatch("transformers reads a cache's length off its first layer, which has no window")
    return {"layer_types": words, "sliding_window": window}


def _recurrent_gemma(layout: Layout) -> Config:
    words = {"linear_attention": "recurrent", "sliding_attention": "attention", "full_attention": "attention"}
    attention, mlp = layout.first("attention"), layout.first("mlp")
    return {
        "block_types": [words[word] for word in layout.words()],
        "attention_window_size": attention.window,
        "intermediate_size": 2 * mlp.hidden,
    }


def _jamba(layout: Layout) -> Config:
    """Attention and experts come at regular places."""
    attention = _every([unit[0].kind == "attention" for unit in layout.units])
    experts = _every([unit[-1].kind == "moe" for unit in layout.units])
    return {
        **dict(zip(("attn_layer_period", "attn_layer_offset"), attention, strict=True)),
        **dict(zip(("expert_layer_period", "expert_layer_offset"), experts, strict=True)),
    }


def _every(there: list[bool]) -> tuple[int, int]:
    """Period and offset of the places that hold, if they are regular; beyond the last if there are none."""
    places = [i for i, held in enumerate(there) if held]
    if not places:
        return len(there) + 1, len(there)
    return places[1] - places[0] if len(places) > 1 else max(len(there), places[0] + 1), places[0]


def _kimi_linear(layout: Layout) -> Config:
    return {"mlp_layer_types": ["sparse" if unit[-1].kind == "moe" else "dense" for unit in layout.units]}


TARGETS: tuple[Target, ...] = (
    Target("nemotron_h", ("attention", "mamba2", "mlp", "moe"), pair=False, mixed=True, extra=_clamped),
    Target("granitemoehybrid", ("attention", "mamba2", "mlp", "moe"), mixed=True, extra=_granite),
    Target("olmo_hybrid", ("attention", "gated_deltanet", "mlp"), mixed=True),
    Target("lfm2", ("attention", "gated_conv", "mlp"), mixed=True, extra=_lfm2),
    Target("lfm2_moe", ("attention", "gated_conv", "mlp", "moe"), mixed=True, extra=_lfm2_moe),
    Target("lfm3", ("attention", "gated_conv", "mlp"), mixed=True, extra=_lfm3),
    Target("falcon_h1", ("parallel", "attention", "mamba2", "mlp"), extra=_falcon_h1),
    Target("qwen3_5_text", ("attention", "gated_deltanet", "mlp"), mixed=True),
    Target("qwen3_5_moe_text", ("attention", "gated_deltanet", "moe"), mixed=True),
    Target("qwen3_next", ("attention", "gated_deltanet", "mlp", "moe"), mixed=True, extra=_qwen3_next),
    Target("bamba", ("attention", "mamba2", "mlp"), mixed=True, extra=_bamba),
    Target("kimi_linear", ("mla", "kda", "mlp", "moe"), mixed=True, extra=_kimi_linear),
    Target("bailing_hybrid", ("mla", "kda", "mlp", "moe"), mixed=True, extra=_kimi_linear),
    Target(
        "zamba2",
        ("sequential", "linear", "attention", "mamba2", "mlp"),
        pair=False,
        mixed=True,
        shares=True,
        extra=_zamba2,
    ),
    Target(
        "zamba", ("sequential", "linear", "attention", "mamba1", "mlp"), pair=False, mixed=True, shares=True
    ),
    Target("jamba", ("attention", "mamba1", "mlp", "moe"), mixed=True, extra=_jamba),
    Target("minimax", ("attention", "lightning", "moe"), mixed=True, extra=_minimax),
    Target("recurrent_gemma", ("attention", "rglru", "mlp"), mixed=True, extra=_recurrent_gemma),
    Target("llama", ("attention", "mlp")),
    Target("qwen3", ("attention", "mlp"), extra=_qwen3),
    Target("gemma2", ("attention", "mlp"), extra=_gemma2),
    Target("mamba2", ("mamba2",), pair=False),
    Target("mamba", ("mamba1",), pair=False),
    Target("falcon_mamba", ("mamba1",), pair=False),
)
"""In the order in which an export prefers them: first the hybrids that serving engines know."""
