"""RecurrentGemma (arXiv 2404.07839): recurrent blocks and local attention, each followed by GeGLU."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    # transformers keeps this multiplier in bfloat16 whatever the weights' dtype.
    scales = {"embedding": parts.width_root(c, "bfloat16"), "softcap": c.logits_soft_cap}
    return parts.trunk(c, norm="final_norm", eps=c.rms_norm_eps, unit_offset=True, scales=scales)


def layers(c: Fields) -> Iterator[Part]:
    c.agree(embeddings_scale_by_sqrt_dim=True)
    for i, make in c.each("layer_types", {"linear_attention": recurrence, "sliding_attention": attention}):
        at = f"model.layers.{i}"
        yield make(c, f"{at}.temporal_block").normed(f"{at}.temporal_pre_norm")
        yield parts.mlp(
            f"{at}.mlp_block",
            hidden=c.intermediate_size // 2,
            activation=c.word("hidden_activation", parts.GATED),
            bias=True,
        ).normed(f"{at}.channel_pre_norm")


def recurrence(c: Fields, at: str) -> Part:
    c.only("hidden_activation", "gelu_pytorch_tanh")
    return parts.rglru(at, width=c.lru_width, heads=c.num_attention_heads, d_conv=c.conv1d_width)


def attention(c: Fields, at: str) -> Part:
    return parts.attention(
        at,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rope=parts.rope(c, partial=True),
        window=c.attention_window_size,
        bias=c.attention_bias,
        output_bias=True,
    )


FAMILY = Family(
    ("recurrent_gemma",),
    trunk,
    layers,
    ignored={
        **dict.fromkeys(("block_types", "_block_types"), "layer_types says it"),
        "w_init_variance_scale": "initial weights",
        "final_w_init_variance_scale": "initial weights",
    },
)
