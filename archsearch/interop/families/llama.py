"""Llama (arXiv 2302.13971): grouped-query attention and SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield parts.attention(
            f"{at}.self_attn",
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            rope=parts.rope(c),
            bias=c.attention_bias,
            output_bias=c.attention_bias,
        ).normed(f"{at}.input_layernorm")
        yield parts.mlp(
            f"{at}.mlp",
            hidden=c.intermediate_size,
            activation=c.word("hidden_act", parts.GATED),
            bias=c.mlp_bias,
        ).normed(f"{at}.post_attention_layernorm")


FAMILY = Family(("llama",), trunk, layers)
