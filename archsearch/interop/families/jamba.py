"""Jamba (arXiv 2403.19887): Mamba with normed dt, B and C, attention without positions, SwiGLU or experts."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, norm="final_layernorm", eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    c.understood(experts)
    c.agree(mamba_inner_layernorms=True)
    for i, mixer in c.each("layer_types", {"full_attention": attention, "linear_attention": mamba}):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.input_layernorm")
        channels = experts if c.layers_num_experts[i] > 1 else mlp
        yield channels(c, f"{at}.feed_forward").normed(f"{at}.pre_ff_layernorm")


def attention(c: Fields, at: str) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.get("head_dim"),
        rope="none",
    )


def mamba(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.mamba1(
        f"{at}.mamba",
        d_state=c.mamba_d_state,
        expand=c.mamba_expand,
        dt_rank=c.mamba_dt_rank,
        d_conv=c.mamba_d_conv,
        inner_norm="weighted",
        conv_bias=c.mamba_conv_bias,
        bias=c.mamba_proj_bias,
    )


def mlp(c: Fields, at: str) -> Part:
    return parts.mlp(at, hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED))


def experts(c: Fields, at: str) -> Part:
    return parts.moe(
        at,
        gate="router",
        experts=c.num_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.intermediate_size,
        activation=c.word("hidden_act", parts.GATED),
        renormalise=False,
        balance=c.router_aux_loss_coef,
    )


FAMILY = Family(
    ("jamba",),
    trunk,
    layers,
    ignored={
        "n_ctx": "the length of a table",
        "calc_logits_for_entire_prompt": "what a call returns",
        **dict.fromkeys(("attn_layer_period", "attn_layer_offset"), "layer_types says it"),
        **dict.fromkeys(("expert_layer_period", "expert_layer_offset"), "layers_num_experts says it"),
        **dict.fromkeys(
            ("use_mamba_kernels", "use_mambapy", "use_associative_scan"), "how it is computed, not what"
        ),
    },
)
