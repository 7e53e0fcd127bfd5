"""LFM2 (arXiv 2511.23404): gated short convolutions and attention, each followed by SwiGLU or experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, norm="embedding_norm", eps=c.norm_eps)


def dense(c: Fields) -> Iterator[Part]:
    c.agree(block_dim=c.hidden_size, conv_dim=c.hidden_size, conv_dim_out=c.hidden_size)
    c.agree(block_norm_eps=c.norm_eps, block_use_swiglu=True, num_heads=c.num_attention_heads)
    c.agree(theta=c.rope_parameters["rope_theta"], use_pos_enc=True)
    return layers(c, [adjusted] * c.num_hidden_layers)


def sparse(c: Fields) -> Iterator[Part]:
    c.understood(plain, experts)
    return layers(c, [plain if i < c.num_dense_layers else experts for i in range(c.num_hidden_layers)])


def layers(c: Fields, channels: list[Callable[[Fields, str], Part]]) -> Iterator[Part]:
    for i, mixer in c.each("layer_types", {"conv": conv, "full_attention": attention}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.operator_norm")
        yield channels[i](c, f"{at}.feed_forward").normed(f"{at}.ffn_norm")


def adjusted(c: Fields, at: str) -> Part:
    """The MLP of the dense models, whose config gives its width before it is adjusted."""
    width, step = c.intermediate_size, c.block_multiple_of
    factor = c.block_ffn_dim_multiplier
    if c.block_auto_adjust_ff_dim:
        width = -(-int(factor * int(2 * width / 3)) // step) * step
    return mlp(at, width)


def plain(c: Fields, at: str) -> Part:
    return mlp(at, c.intermediate_size)


def mlp(at: str, hidden: int) -> Part:
    return parts.mlp(at, up=("w1", "w3"), down="w2", hidden=hidden)


def experts(c: Fields, at: str) -> Part:
    return parts.moe(
        at,
        selection_bias="expert_bias" if c.use_expert_bias else None,
        experts=c.num_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.moe_intermediate_size,
        router="sigmoid",
        renormalise=c.norm_topk_prob,
        renormalise_eps=1e-6,
        routed_scale=c.routed_scaling_factor,
    )


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


LFM2 = Family(
    ("lfm2",),
    trunk,
    dense,
    ignored={
        "full_attn_idxs": "layer_types says it",
        **dict.fromkeys(
            ("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init"),
            "initial weights",
        ),
    },
)
LFM2_MOE = Family(("lfm2_moe",), trunk, sparse)
