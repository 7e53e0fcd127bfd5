"""OLMo Hybrid: gated DeltaNet normed before, attention normed after, each followed by SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields

NORM_EPS = 1e-5
"""Of the norm of DeltaNet's heads: a constant in transformers, whatever rms_norm_eps is."""


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    for i, make in c.each("layer_types", {"full_attention": attention, "linear_attention": deltanet}):
        at = f"model.layers.{i}"
        mlp = parts.mlp(f"{at}.mlp", hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED))
        yield make(c, at)
        if make is attention:
            yield mlp.normed(after=f"{at}.post_feedforward_layernorm")
        else:
            yield mlp.normed(f"{at}.post_attention_layernorm")


def attention(c: Fields, at: str) -> Part:
    rotated = c.rope_parameters is not None and c.rope_parameters.get("rope_theta") is not None
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.get("head_dim"),
        rope=parts.rope(c) if rotated else "none",
        qk_norm="full",
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    ).normed(after=f"{at}.post_attention_layernorm")


def deltanet(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.gated_deltanet(
        f"{at}.linear_attn",
        into=("q_proj", "k_proj", "v_proj", "g_proj", "b_proj", "a_proj"),
        norm="o_norm",
        out="o_proj",
        key_heads=c.linear_num_key_heads,
        value_heads=c.linear_num_value_heads,
        key_dim=c.linear_key_head_dim,
        value_dim=c.linear_value_head_dim,
        d_conv=c.linear_conv_kernel_dim,
        beta_scale=2 if c.linear_allow_neg_eigval else 1,
        norm_eps=NORM_EPS,
        dt_min=c.linear_dt_min,
        dt_max=c.linear_dt_max,
        dt_floor=c.linear_dt_init_floor,
        A_init=[c.linear_a_log_min, c.linear_a_log_max],
    ).normed(f"{at}.input_layernorm")


FAMILY = Family(("olmo_hybrid",), trunk, layers)
