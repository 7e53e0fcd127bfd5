"""More families of `sources`: those with experts and rarer mixers, and near relatives of Llama."""

from __future__ import annotations

from .sources import Draw, Fields, coin, family, heads, stack, types


def routed(draw: Draw) -> Fields:
    """Experts in groups, as DeepSeek-V3's relatives have them."""
    return {
        "n_group": draw.choice([1, 3]),
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "norm_topk_prob": coin(draw),
        "routed_scaling_factor": 1.7,
        "n_shared_experts": draw.choice([1, 2]),
        "moe_intermediate_size": 24,
    }


def stretched(draw: Draw) -> Fields:
    """Rotations, at times for longer contexts, in DeepSeek-V3's own way."""
    plain = {"rope_type": "default", "rope_theta": draw.choice([500.0, 10000.0])}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    mscales = draw.choice([{}, {"mscale": 1.0, "mscale_all_dim": 0.7}, {"mscale_all_dim": 1.0}])
    return {"rope_parameters": draw.choice([plain, plain | yarn | mscales])}


def latent(draw: Draw) -> Fields:
    heads = draw.choice([2, 3])
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": draw.choice([16, 20]),
        "qk_nope_head_dim": draw.choice([8, 12]),
        "qk_rope_head_dim": draw.choice([4, 6]),
        "v_head_dim": draw.choice([8, 10]),
        "attention_bias": coin(draw),
    }


@family
def kimi_linear(draw: Draw) -> Fields:
    fields = stack(draw)
    layers = fields["num_hidden_layers"]
    return (
        fields
        | latent(draw)
        | routed(draw)
        | {
            "config": "KimiLinearConfig",
            "rms_norm_eps": draw.choice([1e-5, 1e-2]),
            "layer_types": types(draw, layers, ("linear_attention", "full_attention")),
            "mlp_layer_types": types(draw, layers, ("dense", "sparse")),
            "num_local_experts": 6,
            "intermediate_size": draw.choice([40, 72]),
            "q_lora_rank": draw.choice([None, 14]),
            "linear_num_heads": draw.choice([2, 3]),
            "linear_head_dim": draw.choice([8, 12]),
            "linear_conv_kernel_dim": draw.choice([3, 4]),
        }
    )


@family
def bailing_hybrid(draw: Draw) -> Fields:
    fields = kimi_linear(draw)
    for name in ("q_lora_rank", "linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"):
        del fields[name]
    return (
        fields
        | stretched(draw)
        | {
            "config": "BailingHybridConfig",
            "head_dim": draw.choice([8, 12]),
            "short_conv_kernel_size": draw.choice([3, 4]),
            "kda_safe_gate": coin(draw),
            "kda_lower_bound": draw.choice([-2.0, -5.0]),
        }
    )


@family
def lfm3(draw: Draw) -> Fields:
    fields, gated = stack(draw, low=4), coin(draw)
    kinds = ["conv", "full_attention", "sliding_attention", "conv", "full_attention"]
    kinds = kinds[: fields["num_hidden_layers"]]
    draw.shuffle(kinds)
    full = {"rope_theta": 1e4, "rope_type": "proportional", "partial_rotary_factor": 0.5}
    return (
        fields
        | heads(draw)
        | {
            "config": "Lfm3Config",
            "norm_eps": draw.choice([1e-5, 1e-2]),
            "layer_types": kinds,
            "head_dim": draw.choice([8, 20]),
            "conv_bias": coin(draw),
            "conv_L_cache": draw.choice([3, 7]),
            "sliding_window": draw.choice([7, 16]),
            "use_sandwich_norm": coin(draw),
            "use_attention_gate": gated,
            "attention_bias": False if gated else coin(draw),
            "rope_parameters": {
                "full_attention": draw.choice([full, {"rope_theta": 500.0, "rope_type": "default"}]),
                "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
            },
        }
    )


@family
def minimax(draw: Draw) -> Fields:
    """A window only where attention comes first: transformers reads a cache's length off its first layer."""
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("linear_attention", "full_attention"))
    return (
        fields
        | heads(draw)
        | {
            "config": "MiniMaxConfig",
            "rms_norm_eps": draw.choice([1e-5, 1e-2]),
            "layer_types": kinds,
            "head_dim": draw.choice([None, 12]),
            "sliding_window": 9 if kinds[0] == "full_attention" else None,
            "num_local_experts": draw.choice([4, 5]),
            "num_experts_per_tok": draw.choice([1, 2]),
            "block_size": 16,
            "full_attn_alpha_factor": 1.3,
            "full_attn_beta_factor": 0.8,
            "linear_attn_alpha_factor": 0.9,
            "linear_attn_beta_factor": 1.2,
            "mlp_alpha_factor": 1.1,
            "mlp_beta_factor": 0.7,
        }
    )


def hybrid(draw: Draw) -> list[str]:
    """Kinds of layers, with at least two calls of the shared blocks."""
    kinds = ["linear_attention", "hybrid", "hybrid", "linear_attention"] + ["hybrid"] * draw.choice([0, 1])
    draw.shuffle(kinds)
    return kinds


@family
def zamba(draw: Draw) -> Fields:
    kinds = hybrid(draw)
    heads = draw.choice([2, 4, 6])
    return stack(draw) | {
        "config": "ZambaConfig",
        "rms_norm_eps": draw.choice([1e-5, 1e-2]),
        "tie_word_embeddings": True,
        "num_hidden_layers": len(kinds),
        "layers_block_type": kinds,
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([heads, 2]),
        "attention_head_dim": draw.choice([None, 14]),
        "intermediate_size": draw.choice([40, 72]),
        "n_mamba_heads": draw.choice([1, 2, 3]),
        "mamba_d_state": draw.choice([5, 8]),
        "mamba_d_conv": draw.choice([3, 4]),
        "mamba_dt_rank": draw.choice(["auto", 5]),
        "mamba_expand": draw.choice([1, 2]),
        "mamba_conv_bias": coin(draw),
        "mamba_proj_bias": coin(draw),
    }


@family
def zamba2(draw: Draw) -> Fields:
    kinds = hybrid(draw)
    heads, adapters = draw.choice([2, 4, 6]), coin(draw)
    return stack(draw) | {
        "config": "Zamba2Config",
        "rms_norm_eps": draw.choice([1e-5, 1e-2]),
        "tie_word_embeddings": True,
        "num_hidden_layers": len(kinds),
        "layers_block_type": kinds,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if adapters else draw.choice([heads, 2]),
        "intermediate_size": draw.choice([40, 72]),
        "num_mem_blocks": draw.choice([1, 2]),
        "use_shared_attention_adapter": adapters,
        "adapter_rank": draw.choice([4, 6]),
        "use_mem_rope": coin(draw),
        "add_bias_linear": coin(draw),
        "n_mamba_heads": draw.choice([6, 12, 3]),
        "mamba_ngroups": draw.choice([1, 3]),
        "mamba_d_state": draw.choice([8, 12]),
        "mamba_d_conv": draw.choice([3, 4]),
    }


@family
def deepseek_v3(draw: Draw) -> Fields:
    return (
        stack(draw)
        | latent(draw)
        | routed(draw)
        | stretched(draw)
        | {
            "config": "DeepseekV3Config",
            "rms_norm_eps": draw.choice([1e-5, 1e-2]),
            "n_routed_experts": 6,
            "intermediate_size": draw.choice([40, 72]),
            "q_lora_rank": draw.choice([None, 14]),
            "first_k_dense_replace": draw.choice([0, 1]),
            "rope_interleave": coin(draw),
        }
    )


def relative(draw: Draw, config: str) -> Fields:
    """What Llama's relatives have in common."""
    shared = {
        "config": config,
        "rms_norm_eps": draw.choice([1e-5, 1e-2]),
        "rope_theta": draw.choice([500.0, 10000.0]),
    }
    return stack(draw) | heads(draw) | shared


def few_experts(draw: Draw) -> Fields:
    return {"num_experts": draw.choice([4, 5]), "num_experts_per_tok": draw.choice([1, 2])}


@family
def qwen2(draw: Draw) -> Fields:
    fields = relative(draw, "Qwen2Config")
    kinds = types(draw, fields["num_hidden_layers"], ("full_attention", "sliding_attention"))
    return fields | {"layer_types": kinds, "use_sliding_window": True, "sliding_window": 9}


@family
def qwen3_moe(draw: Draw) -> Fields:
    return (
        relative(draw, "Qwen3MoeConfig")
        | few_experts(draw)
        | {
            "head_dim": draw.choice([8, 20]),
            "attention_bias": coin(draw),
            "moe_intermediate_size": 24,
            "norm_topk_prob": coin(draw),
            "mlp_only_layers": draw.choice([[], [1]]),
            "decoder_sparse_step": draw.choice([1, 2]),
            "use_sliding_window": coin(draw),
            "sliding_window": 9,
        }
    )


@family
def mistral(draw: Draw) -> Fields:
    window, head_dim = draw.choice([None, 9]), draw.choice([None, 20])
    return relative(draw, "MistralConfig") | {"head_dim": head_dim, "sliding_window": window}


@family
def ministral(draw: Draw) -> Fields:
    fields = mistral(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("full_attention", "sliding_attention"))
    return fields | {
        "config": "MinistralConfig",
        "head_dim": draw.choice([8, 20]),
        "layer_types": kinds,
        "sliding_window": 9,
    }


@family
def mixtral(draw: Draw) -> Fields:
    fields = relative(draw, "MixtralConfig") | few_experts(draw)
    return fields | {"head_dim": draw.choice([None, 20]), "sliding_window": draw.choice([None, 9])}


@family
def gemma(draw: Draw) -> Fields:
    fields = relative(draw, "GemmaConfig")
    return fields | {"head_dim": draw.choice([8, 20]), "attention_bias": coin(draw)}


@family
def granite3(draw: Draw) -> Fields:
    return relative(draw, "GraniteConfig") | {
        "attention_bias": coin(draw),
        "mlp_bias": coin(draw),
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
        "logits_scaling": 1.7,
    }


@family
def granitemoe(draw: Draw) -> Fields:
    fields = granite3(draw)
    del fields["mlp_bias"]
    return fields | {
        "config": "GraniteMoeConfig",
        "num_local_experts": draw.choice([4, 5]),
        "num_experts_per_tok": draw.choice([1, 2]),
    }


@family
def granitemoeshared(draw: Draw) -> Fields:
    width = draw.choice([0, 24])
    return granitemoe(draw) | {"config": "GraniteMoeSharedConfig", "shared_intermediate_size": width}


@family
def phi3(draw: Draw) -> Fields:
    fields = relative(draw, "Phi3Config")
    rope = {
        "rope_theta": fields.pop("rope_theta"),
        "rope_type": "default",
        "partial_rotary_factor": draw.choice([0.5, 1.0]),
    }
    return fields | {"sliding_window": draw.choice([None, 9]), "rope_parameters": rope}


@family
def smollm3(draw: Draw) -> Fields:
    fields = relative(draw, "SmolLM3Config")
    layers = fields["num_hidden_layers"]
    return fields | {
        "attention_bias": coin(draw),
        "mlp_bias": coin(draw),
        "no_rope_layers": [int(coin(draw)) for _ in range(layers)],
        "layer_types": types(draw, layers, ("full_attention", "sliding_attention")),
        "use_sliding_window": coin(draw),
        "sliding_window": 9,
    }


@family
def olmo2(draw: Draw) -> Fields:
    return relative(draw, "Olmo2Config") | {"attention_bias": coin(draw)}


@family
def olmo3(draw: Draw) -> Fields:
    fields = relative(draw, "Olmo3Config")
    plain = {"rope_theta": fields.pop("rope_theta"), "rope_type": "default"}
    yarn = plain | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    return fields | {
        "attention_bias": coin(draw),
        "layer_types": types(draw, fields["num_hidden_layers"], ("sliding_attention", "full_attention")),
        "sliding_window": 9,
        "rope_parameters": {"sliding_attention": plain, "full_attention": draw.choice([plain, yarn])},
    }


@family
def olmoe(draw: Draw) -> Fields:
    fields = relative(draw, "OlmoeConfig") | few_experts(draw)
    # transformers norms keys over the model's whole width, as if there were no groups.
    fields["num_key_value_heads"] = fields["num_attention_heads"]
    return fields | {"attention_bias": coin(draw), "norm_topk_prob": coin(draw)}
