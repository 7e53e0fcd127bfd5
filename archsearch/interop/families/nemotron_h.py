"""Nemotron-H (arXiv 2504.03624): each block is Mamba-2, attention without positions, an MLP or experts."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields

PLAIN = {"relu2": "relu2", "silu": "silu", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' activation -> the MLP's activation here, without a gate."""


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, embedding="embeddings", norm="norm_f", eps=c.layer_norm_epsilon, tied=False)


def layers(c: Fields) -> Iterator[Part]:
    c.agree(rms_norm_eps=c.layer_norm_epsilon, attention_head_dim=c.head_dim)
    kinds = {"linear_attention": mamba2, "full_attention": attention, "mlp": mlp, "moe": moe}
    for i, make in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        yield make(c, f"{at}.mixer").normed(f"{at}.norm")


def mamba2(c: Fields, at: str) -> Part:
    c.only("mamba_hidden_act", "silu")
    return parts.mamba2(
        at,
        heads=c.mamba_num_heads,
        head_dim=c.mamba_head_dim,
        groups=c.n_groups,
        d_state=c.ssm_state_size,
        d_conv=c.conv_kernel,
        # transformers clamps at time_step_min, and does not read time_step_limit.
        dt_limit=[c.time_step_min, inf],
        dt_min=c.time_step_min,
        dt_max=c.time_step_max,
        dt_floor=c.time_step_floor,
        conv_bias=c.use_conv_bias,
        bias=c.use_bias,
    )


def attention(c: Fields, at: str) -> Part:
    c.only("attention_bias", False)
    c.only("sliding_window", None)
    return parts.attention(
        at,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rope="none",
    )


def mlp(c: Fields, at: str) -> Part:
    return plain_mlp(c, at, c.intermediate_size)


def plain_mlp(c: Fields, at: str, hidden: int) -> Part:
    activation = c.word("mlp_hidden_act", PLAIN)
    return parts.mlp(at, up="up_proj", hidden=hidden, activation=activation, bias=c.mlp_bias)


def moe(c: Fields, at: str) -> Part:
    latent = c.moe_latent_size
    return parts.moe(
        at,
        up="up_proj",
        selection_bias="gate.e_score_correction_bias",
        experts=c.n_routed_experts,
        top_k=c.num_experts_per_tok,
        hidden=c.moe_intermediate_size,
        activation=c.word("mlp_hidden_act", PLAIN),
        router="sigmoid",
        renormalise=c.norm_topk_prob,
        renormalise_eps=1e-20,
        routed_scale=c.routed_scaling_factor,
        groups=c.n_group,
        top_groups=c.topk_group,
        latent=latent,
        latent_names=("fc1_latent_proj", "fc2_latent_proj") if latent else (),
        shared=plain_mlp(c, f"{at}.shared_experts", c.moe_shared_expert_intermediate_size),
        bias=c.mlp_bias,
    )


FAMILY = Family(
    ("nemotron_h",),
    trunk,
    layers,
    ignored={
        "tie_word_embeddings": "transformers never ties this family's head",
        "time_step_limit": "transformers does not read it",
        "mamba_proj_bias": "transformers reads use_bias",
        "expand": "the heads say it",
        "time_step_rank": "transformers does not read it",
        "n_shared_experts": "moe_shared_expert_intermediate_size says it",
        "moe_shared_expert_overlap": "how it is computed, not what",
        "num_nextn_predict_layers": "transformers does not build them",
        "mtp_layers_block_type": "transformers does not build them",
        "use_mamba_kernels": "how it is computed, not what",
        "mamba_ssm_cache_dtype": "how a cache is kept",
    },
)
