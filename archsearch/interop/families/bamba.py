"""Bamba: Mamba-2 and grouped-query attention, each followed by SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, norm="final_layernorm", eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    for i, mixer in c.each("layer_types", {"full_attention": attention, "linear_attention": mamba2}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.input_layernorm")
        yield parts.mlp(
            f"{at}.feed_forward",
            hidden=c.intermediate_size,
            activation=c.word("hidden_act", parts.GATED),
            bias=c.mlp_bias,
        ).normed(f"{at}.pre_ff_layernorm")


def attention(c: Fields, at: str) -> Part:
    head_dim = c.get("head_dim") or c.hidden_size // c.num_attention_heads
    c.agree(attn_rotary_emb=head_dim // 2)
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=head_dim,
        rope=parts.rope(c, partial=True),
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    )


def mamba2(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.mamba2(
        f"{at}.mamba",
        heads=c.mamba_n_heads,
        head_dim=c.mamba_d_head,
        groups=c.mamba_n_groups,
        d_state=c.mamba_d_state,
        d_conv=c.mamba_d_conv,
        dt_limit=parts.dt_limit(c),
        conv_bias=c.mamba_conv_bias,
        bias=c.mamba_proj_bias,
    )


FAMILY = Family(
    ("bamba",),
    trunk,
    layers,
    ignored={
        "attn_layer_indices": "layer_types says it",
        "mamba_expand": "transformers checks it against the heads",
    },
)
