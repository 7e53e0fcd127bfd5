"""Granite 4.0 H: Mamba-2 and attention, each followed by an MLP or experts; four multipliers."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.families import bamba
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    scales = {
        "embedding": c.embedding_multiplier,
        "residual": c.residual_multiplier,
        "logits": 1 / c.logits_scaling,
    }
    return parts.trunk(c, eps=c.rms_norm_eps, scales=scales)


def layers(c: Fields) -> Iterator[Part]:
    kinds = {"full_attention": attention, "linear_attention": bamba.mamba2}
    c.understood(experts)
    c.agree(normalization_function="rmsnorm")
    channels = experts if c.num_local_experts else mlp
    for i, mixer in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        yield mixer(c, at).normed(f"{at}.input_layernorm")
        yield channels(c, at).normed(f"{at}.post_attention_layernorm")


def attention(c: Fields, at: str) -> Part:
    rotated = c.only("position_embedding_type", None, "nope", "rope") == "rope"
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.get("head_dim"),
        rope=parts.rope(c) if rotated else "none",
        scale=c.attention_multiplier,
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    )


def mlp(c: Fields, at: str) -> Part:
    return parts.mlp(
        f"{at}.shared_mlp",
        up="input_linear",
        down="output_linear",
        hidden=c.shared_intermediate_size,
        activation=c.word("hidden_act", parts.GATED),
    )


def experts(c: Fields, at: str) -> Part:
    return parts.moe(
        f"{at}.block_sparse_moe",
        gate="router",
        experts=c.num_local_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.intermediate_size,
        activation=c.word("hidden_act", parts.GATED),
        # A softmax over the chosen is that over all, divided by the chosen ones' sum.
        renormalise=True,
        renormalise_eps=0.0,
        balance=c.router_aux_loss_coef,
        shared=mlp(c, at) if c.get("shared_intermediate_size") else None,
    )


FAMILY = Family(
    ("granitemoehybrid",),
    trunk,
    layers,
    ignored={
        "init_method": "initial weights",
        "mamba_expand": "transformers checks it against the heads",
        "rope_parameters": "read where position_embedding_type is rope",
    },
)
