"""Ling 3's hybrids: Kimi Delta Attention with bounded decays, and gated latent attention; experts."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part
from archsearch.interop.families import kimi_linear
from archsearch.interop.fields import Fields


def layers(c: Fields) -> Iterator[Part]:
    yield from kimi_linear.blocks(c, kda, mla)


def kda(c: Fields, at: str) -> Part:
    c.only("hidden_act", "silu")
    return parts.kda(
        at,
        into=("q_proj", "k_proj", "v_proj", "forget_gate.f_proj", "g_proj", "b_proj"),
        forget="forget_gate",
        heads=c.linear_num_heads,
        head_dim=c.linear_head_dim,
        d_conv=c.linear_conv_kernel_dim,
        gate_rank="full",
        decay_bound=-float(c.kda_lower_bound) if c.kda_safe_gate else None,
    )


def mla(c: Fields, at: str) -> Part:
    rotation = kimi_linear.rotation(c, interleaved=True)
    return kimi_linear.latent_attention(c, at, q_rank=None, gate="g_proj", **rotation)


FAMILY = Family(
    ("bailing_hybrid",),
    kimi_linear.trunk,
    layers,
    ignored={
        **kimi_linear.IGNORED,
        "kda_lower_bound": "read where kda_safe_gate is true",
        "layer_group_size": "layer_types says it",
        "first_k_dense_replace": "mlp_layer_types says it",
        "rope_theta": "rope_parameters says it",
        "short_conv_kernel_size": "linear_conv_kernel_dim says it",
        "num_mtp_layers": "transformers does not build them",
        "mtp_loss_scaling_factor": "for training",
    },
)
