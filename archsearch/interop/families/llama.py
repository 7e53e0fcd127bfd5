"""Llama (arXiv 2302.13971), and Qwen3 (arXiv 2505.09388), which norms queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps)


def llama(c: Fields) -> Iterator[Part]:
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield attention(c, at)
        yield mlp(c, at, bias=c.mlp_bias)


def qwen3(c: Fields) -> Iterator[Part]:
    kinds = {"full_attention": attention, "sliding_attention": windowed}
    for i, make in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        yield make(c, at, qk_norm="head")
        yield mlp(c, at, bias=False)


def attention(c: Fields, at: str, **fields: Any) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rope=parts.rope(c),
        bias=c.attention_bias,
        output_bias=c.attention_bias,
        **fields,
    ).normed(f"{at}.input_layernorm")


def windowed(c: Fields, at: str, **fields: Any) -> Part:
    return attention(c, at, window=c.needed("sliding_window"), **fields)


def mlp(c: Fields, at: str, bias: bool) -> Part:
    return parts.mlp(
        f"{at}.mlp", hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED), bias=bias
    ).normed(f"{at}.post_attention_layernorm")


LLAMA = Family(("llama",), trunk, llama)
QWEN3 = Family(
    ("qwen3",),
    trunk,
    qwen3,
    ignored=dict.fromkeys(("use_sliding_window", "max_window_layers"), "layer_types says it"),
)
