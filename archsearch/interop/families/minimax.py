"""MiniMax-Text-01 (arXiv 2501.08313): lightning and softmax attention, experts; residuals after the norm."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields

NORM_EPS = 1e-6
"""Of lightning attention's norm: a constant in transformers, whatever rms_norm_eps is."""
PLAIN = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
"""transformers' activation -> lightning attention's."""


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    for i, make in c.each("layer_types", {"linear_attention": lightning, "full_attention": attention}):
        at = f"model.layers.{i}"
        yield make(c, at, i).having(norm="entry").normed(f"{at}.input_layernorm")
        yield moe(c, f"{at}.mlp").normed(f"{at}.post_attention_layernorm")


def lightning(c: Fields, at: str, i: int = 0) -> Part:
    return parts.lightning(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        head_dim=c.head_dim,
        decay_scale=1 - i / (c.num_hidden_layers - 1 + 1e-5) + 1e-5,
        activation=c.word("hidden_act", PLAIN),
        norm_eps=parts.constant_eps(c, NORM_EPS),
        skip_scale=float(c.linear_attn_alpha_factor),
        out_scale=float(c.linear_attn_beta_factor),
    )


def attention(c: Fields, at: str, i: int = 0) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rope=parts.rope(c),
        window=c.sliding_window,
        skip_scale=float(c.full_attn_alpha_factor),
        out_scale=float(c.full_attn_beta_factor),
    )


def moe(c: Fields, at: str) -> Part:
    return parts.moe(
        at,
        experts=c.num_local_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.intermediate_size,
        activation=c.word("hidden_act", parts.GATED),
        renormalise=True,
        norm="entry",
        skip_scale=float(c.mlp_alpha_factor),
        out_scale=float(c.mlp_beta_factor),
    )


FAMILY = Family(
    ("minimax",),
    trunk,
    layers,
    ignored={"router_jitter_noise": "for training", "block_size": "how it is computed, not what"},
)
