"""Gemma 2 (arXiv 2408.00118): norms around every block, capped scores and logits, windows in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    held = str(c.dtype or "float32").removeprefix("torch.")
    scales = {"embedding": parts.width_root(c, held), "softcap": c.final_logit_softcapping}
    return parts.trunk(c, eps=c.rms_norm_eps, unit_offset=True, scales=scales)


def layers(c: Fields) -> Iterator[Part]:
    c.only("use_bidirectional_attention", None, False)
    c.agree(hidden_act=c.hidden_activation)
    for i, make in c.each("layer_types", {"full_attention": attention, "sliding_attention": windowed}):
        at = f"model.layers.{i}"
        yield make(c, at).normed(f"{at}.input_layernorm", f"{at}.post_attention_layernorm")
        yield parts.mlp(
            f"{at}.mlp",
            hidden=c.intermediate_size,
            activation=c.word("hidden_activation", parts.GATED),
        ).normed(f"{at}.pre_feedforward_layernorm", f"{at}.post_feedforward_layernorm")


def attention(c: Fields, at: str, **fields: Any) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rope=parts.rope(c),
        scale=c.query_pre_attn_scalar**-0.5,
        softcap=c.attn_logit_softcapping,
        bias=c.attention_bias,
        output_bias=c.attention_bias,
        **fields,
    )


def windowed(c: Fields, at: str) -> Part:
    return attention(c, at, window=c.needed("sliding_window"))


FAMILY = Family(("gemma2",), trunk, layers)
