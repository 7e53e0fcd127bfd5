"""LFM2 (arXiv 2511.23404): gated short convolutions and attention, each followed by SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, norm="embedding_norm", eps=c.norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    for i, mixer in c.each("layer_types", {"conv": conv, "full_attention": attention}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.operator_norm")
        yield parts.mlp(f"{at}.feed_forward", up=("w1", "w3"), down="w2", hidden=hidden(c)).normed(
            f"{at}.ffn_norm"
        )


def hidden(c: Fields) -> int:
    """Width of the MLP, which the config gives before it is adjusted."""
    width, step, factor = c.intermediate_size, c.block_multiple_of, c.block_ffn_dim_multiplier
    if not c.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    return width if factor is None else -(-int(factor * width) // step) * step


def conv(c: Fields, at: str) -> Part:
    return parts.gated_conv(f"{at}.conv", bias=c.conv_bias, d_conv=c.conv_L_cache)


def attention(c: Fields, at: str) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.get("head_dim"),
        rope=parts.rope(c),
        qk_norm="head",
        norms=("q_layernorm", "k_layernorm"),
        out="out_proj",
    )


FAMILY = Family(("lfm2",), trunk, layers, ignored={"full_attn_idxs": "layer_types says it"})
