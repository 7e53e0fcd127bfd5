"""What transformers' configs call our fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from archsearch.interop.parts import GATED, ROPE_SCALING
from archsearch.spec.layers import Rope
from archsearch.spec.model import ModelSpec

Config = dict[str, Any]
Reader = Callable[[Any, ModelSpec], Any]
"""A resolved layer (or the spec itself) and its model -> a config field's value."""

UNSAID = object()
"""The value of a field that is better left to its default."""

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


def latent_rope(layer: Any, spec: ModelSpec) -> Config | None:
    """`rope_parameters` of latent attention, whose stretch may scale the scores too: by m(mscale_all_dim)^2,
    where m(x) = 1 + 0.1 x log(factor)."""
    found = rope(layer, spec)
    factor = found.get("factor", 1.0) if found else 1.0
    m = math.sqrt(layer.scale * math.sqrt(layer.nope_dim + layer.rope_dim))
    if found and factor > 1 and not math.isclose(m, 1):
        found["mscale_all_dim"] = (m - 1) / (0.1 * math.log(factor))
    return found


def _expand(layer: Any, spec: ModelSpec) -> Any:
    """Configs hold whole numbers. Some do not read theirs, and others refuse heads that do not fit it."""
    expand = _whole(layer.expand)
    return expand if isinstance(expand, int) else UNSAID


def _longest(layer: Any, spec: ModelSpec) -> Any:
    """Stretched rotations are for longer contexts than those of the first training."""
    scaling = layer.rope.scaling if layer.rope is not None else None
    if scaling is None or scaling.original_context is None:
        return UNSAID
    return math.ceil(scaling.original_context * max(scaling.factor or 1, 1))


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
        "max_position_embeddings": _longest,
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
        **dict.fromkeys(("mamba_expand", "expand"), _expand),
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
        **dict.fromkeys(("mamba_expand", "expand"), _expand),
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
        "rope_parameters": latent_rope,
        "max_position_embeddings": _longest,
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
