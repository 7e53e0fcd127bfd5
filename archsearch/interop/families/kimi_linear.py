"""Kimi Linear (arXiv 2510.26692): Kimi Delta Attention, and latent attention without positions; experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log
from typing import Any

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields

LATENT_EPS = 1e-6
"""Of the norms of the latents: a constant in transformers, whatever rms_norm_eps is."""

LINEAR = {"full_attn_layers", "kda_layers", "head_dim", "num_heads", "short_conv_kernel_size"}
"""What checkpoints say of Kimi Delta Attention, which transformers turns into fields of the config."""

Make = Callable[[Fields, str], Part]


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps, tied=False)


def layers(c: Fields) -> Iterator[Part]:
    c.agree(mla_use_nope=True, moe_layer_freq=1)
    c.agree(moe_router_activation_func="sigmoid", topk_method="noaux_tc", use_grouped_topk=True)
    for name in (c.get("linear_attn_config") or {}).keys() - LINEAR:
        c.refuse("linear_attn_config", f"{name!r} is unknown here")
    yield from blocks(c, kda, mla)


def blocks(c: Fields, linear: Make, full: Make) -> Iterator[Part]:
    channels = dict(c.each("mlp_layer_types", {"dense": mlp, "sparse": moe}))
    for i, mixer in c.each("layer_types", {"linear_attention": linear, "full_attention": full}):
        at = f"model.layers.{i}"
        yield mixer(c, f"{at}.self_attn").normed(f"{at}.input_layernorm")
        yield channels[i](c, f"{at}.mlp").normed(f"{at}.post_attention_layernorm")


def kda(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.kda(
        at,
        into=("q_proj", "k_proj", "v_proj", "forget_gate.f_a_proj", "g_a_proj", "b_proj"),
        forget="forget_gate",
        heads=c.linear_num_heads,
        head_dim=c.linear_head_dim,
        d_conv=c.linear_conv_kernel_dim,
    )


def mla(c: Fields, at: str) -> Part:
    return latent_attention(c, at, q_rank=c.q_lora_rank, rope="none")


def rotation(c: Fields, interleaved: bool) -> dict[str, Any]:
    """The fields `rope` and `scale` of rotated latent attention, stretched as by DeepSeek-V3's relatives.

    With m(x) = 1 + 0.1 x log(factor), the rotated channels are multiplied by m(mscale) / m(mscale_all_dim),
    and the scores by m(mscale_all_dim)^2.
    """
    rope = parts.rope(c, harmless=("mscale", "mscale_all_dim"))
    fields = {"rope": rope | ({"interleaved": True} if interleaved else {})}
    mscale, over_all = (c.rope_parameters.get(name) for name in ("mscale", "mscale_all_dim"))
    if "scaling" not in rope or not over_all:
        return fields
    scaling = rope["scaling"]

    def m(x: float) -> float:
        return 1 + 0.1 * x * log(max(1, scaling["factor"]))

    if scaling["kind"] == "yarn" and mscale:
        scaling.setdefault("attention_factor", m(mscale) / m(over_all))
    head_dim = c.qk_nope_head_dim + c.qk_rope_head_dim
    return fields | {"scale": head_dim**-0.5 * m(over_all) ** 2}


def latent_attention(c: Fields, at: str, **fields: Any) -> Part:
    c.only("num_key_value_heads", c.num_attention_heads)
    return parts.mla(
        at,
        heads=c.num_attention_heads,
        kv_rank=c.kv_lora_rank,
        nope_dim=c.qk_nope_head_dim,
        rope_dim=c.qk_rope_head_dim,
        value_dim=c.v_head_dim,
        norm_eps=parts.constant_eps(c, LATENT_EPS),
        bias=c.attention_bias,
        **fields,
    )


def mlp(c: Fields, at: str) -> Part:
    return parts.mlp(at, hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED))


def moe(c: Fields, at: str) -> Part:
    activation = c.word("hidden_act", parts.GATED)
    width = c.moe_intermediate_size * c.n_shared_experts
    return parts.moe(
        at,
        selection_bias="gate.e_score_correction_bias",
        shared=parts.mlp(f"{at}.shared_experts", hidden=width, activation=activation),
        experts=c.num_local_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.moe_intermediate_size,
        activation=activation,
        router="sigmoid",
        renormalise=c.norm_topk_prob,
        renormalise_eps=1e-20,
        routed_scale=c.routed_scaling_factor,
        groups=c.n_group,
        top_groups=c.topk_group,
    )


DERIVED = dict.fromkeys(("qk_head_dim", "head_dim"), "qk_nope_head_dim and qk_rope_head_dim say it")
IGNORED = {"tie_word_embeddings": "transformers never ties this family's head", **DERIVED}
FAMILY = Family(
    ("kimi_linear",),
    trunk,
    layers,
    ignored={
        **IGNORED,
        "first_k_dense_replace": "mlp_layer_types says it",
        "num_nextn_predict_layers": "transformers does not build them",
        "rope_theta": "nothing is rotated",
    },
)
