"""Qwen3-Next and Qwen3.5's text models: gated DeltaNet, gated attention, SwiGLU or experts; 1 + w norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields
from archsearch.interop.rules import Join, rows


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps, unit_offset=True)


def dense(c: Fields) -> Iterator[Part]:
    yield from layers(c, set())


def sparse(c: Fields) -> Iterator[Part]:
    yield from layers(c, set(range(c.num_hidden_layers)))


def next_layers(c: Fields) -> Iterator[Part]:
    c.understood(mlp, experts)
    step, plain = c.decoder_sparse_step, c.mlp_only_layers
    chosen = {i for i in range(c.num_hidden_layers) if i not in plain and (i + 1) % step == 0}
    yield from layers(c, chosen if c.num_experts else set())


def layers(c: Fields, with_experts: set[int]) -> Iterator[Part]:
    c.agree(attn_output_gate=True)
    for i, mixer in c.each("layer_types", {"full_attention": attention, "linear_attention": deltanet}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.input_layernorm")
        channels = experts if i in with_experts else mlp
        yield channels(c, f"{at}.mlp").normed(f"{at}.post_attention_layernorm")


def attention(c: Fields, at: str) -> Part:
    return parts.gated_attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        # Sections are for pictures and films: a text's positions are the same in all three.
        rope=parts.rope(c, harmless=("mrope_section", "mrope_interleaved"), partial=True),
        qk_norm="head",
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    )


def deltanet(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    apart = {"into": ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")}
    by_head = {"into": ("in_proj_qkvz", "in_proj_ba"), "join": interleaved(c)}
    return parts.gated_deltanet(
        f"{at}.linear_attn",
        key_heads=c.linear_num_key_heads,
        value_heads=c.linear_num_value_heads,
        key_dim=c.linear_key_head_dim,
        value_dim=c.linear_value_head_dim,
        d_conv=c.linear_conv_kernel_dim,
        **(by_head if c.model_type == "qwen3_next" else apart),
    )


def interleaved(c: Fields) -> Join:
    """Qwen3-Next's projections hold, key head by key head, its rows of q, k, v, z; then of b, a."""
    keys, key_dim = c.linear_num_key_heads, c.linear_key_head_dim
    shared = c.linear_num_value_heads // keys
    values = shared * c.linear_value_head_dim
    widths = [key_dim, key_dim, values, values]
    qkvz = torch.arange(keys * sum(widths)).view(keys, -1).split(widths, dim=1)
    ba = (torch.arange(2 * keys * shared) + keys * sum(widths)).view(keys, -1).split(shared, dim=1)
    return rows(torch.cat([part.flatten() for part in (*qkvz, *ba)]))


def mlp(c: Fields, at: str) -> Part:
    return parts.mlp(at, hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED))


def experts(c: Fields, at: str) -> Part:
    activation = c.word("hidden_act", parts.GATED)
    return parts.moe(
        at,
        experts=c.num_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.moe_intermediate_size,
        activation=activation,
        renormalise=c.norm_topk_prob if c.model_type == "qwen3_next" else True,
        renormalise_eps=0.0,
        balance=c.router_aux_loss_coef,
        shared=parts.mlp(
            f"{at}.shared_expert", hidden=c.shared_expert_intermediate_size, activation=activation
        ),
        shared_gate="shared_expert_gate",
    )


IGNORED = {
    "full_attention_interval": "layer_types says it",
    "mamba_ssm_dtype": "how a cache is kept",
    **dict.fromkeys(
        ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"), "transformers does not build them"
    ),
}
QWEN3_5 = Family(("qwen3_5_text",), trunk, dense, IGNORED)
QWEN3_5_MOE = Family(("qwen3_5_moe_text",), trunk, sparse, IGNORED)
QWEN3_NEXT = Family(("qwen3_next",), trunk, next_layers, IGNORED)
