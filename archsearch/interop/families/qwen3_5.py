"""Qwen3.5's text models: gated DeltaNet and gated attention, each followed by SwiGLU; norms times 1 + w."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps, unit_offset=True)


def layers(c: Fields) -> Iterator[Part]:
    for i, mixer in c.each("layer_types", {"full_attention": attention, "linear_attention": deltanet}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.input_layernorm")
        yield parts.mlp(
            f"{at}.mlp", hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED)
        ).normed(f"{at}.post_attention_layernorm")


def attention(c: Fields, at: str) -> Part:
    return parts.gated_attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        # Sections are for pictures and films: a text's positions are the same in all three.
        rope=parts.rope(c, harmless=("mrope_section", "mrope_interleaved")),
        qk_norm="head",
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    )


def deltanet(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.gated_deltanet(
        f"{at}.linear_attn",
        into=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
        key_heads=c.linear_num_key_heads,
        value_heads=c.linear_num_value_heads,
        key_dim=c.linear_key_head_dim,
        value_dim=c.linear_value_head_dim,
        d_conv=c.linear_conv_kernel_dim,
    )


FAMILY = Family(("qwen3_5_text",), trunk, layers)
