"""Falcon-H1 (arXiv 2507.22448): Mamba-2 beside attention in every block, SwiGLU, a dozen multipliers."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    scales = {"embedding": c.embedding_multiplier, "logits": c.lm_head_multiplier}
    return parts.trunk(c, norm="final_layernorm", eps=c.rms_norm_eps, scales=scales)


def layers(c: Fields) -> Iterator[Part]:
    c.only("hidden_act", "silu")
    c.agree(mamba_use_mlp=True)
    gate_scale, down_scale = c.mlp_multipliers
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield parts.parallel([mamba2(c, at), attention(c, at)], "sum").normed(f"{at}.input_layernorm")
        yield parts.mlp(
            f"{at}.feed_forward",
            hidden=c.intermediate_size,
            gate_scale=gate_scale,
            out_scale=down_scale,
            bias=c.mlp_bias,
        ).normed(f"{at}.pre_ff_layernorm")


def mamba2(c: Fields, at: str) -> Part:
    place = "before" if c.mamba_norm_before_gate else "after"
    c.only("projectors_bias", c.mamba_proj_bias)
    return parts.mamba2(
        f"{at}.mamba",
        heads=c.mamba_n_heads,
        head_dim=c.mamba_d_head,
        groups=c.mamba_n_groups,
        d_state=c.mamba_d_state,
        d_conv=c.mamba_d_conv,
        gated_norm=place if c.mamba_rms_norm else "none",
        multipliers=c.ssm_multipliers if set(c.ssm_multipliers) != {1} else None,
        in_scale=c.ssm_in_multiplier,
        out_scale=c.ssm_out_multiplier,
        dt_limit=parts.dt_limit(c),
        conv_bias=c.mamba_conv_bias,
        bias=c.mamba_proj_bias,
    )


def attention(c: Fields, at: str) -> Part:
    head_dim = c.get("head_dim") or c.hidden_size // c.num_attention_heads
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=head_dim,
        rope=parts.rope(c),
        # Keys times a constant are scores times that constant.
        scale=head_dim**-0.5 * c.key_multiplier if c.key_multiplier != 1 else None,
        in_scale=c.attention_in_multiplier,
        out_scale=c.attention_out_multiplier,
        bias=c.attention_bias,
        output_bias=c.attention_bias,
    )


FAMILY = Family(
    ("falcon_h1",),
    trunk,
    layers,
    ignored={
        "mamba_d_ssm": "transformers checks it against the heads",
        "mlp_expansion_factor": "intermediate_size says it",
        "mamba_expand": "transformers checks it against the heads",
    },
)
