"""Mamba (arXiv 2312.00752) and FalconMamba (arXiv 2410.05355), which norms dt, B and C."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, stem="backbone", embedding="embeddings", norm="norm_f", eps=c.layer_norm_epsilon)


def layers(c: Fields) -> Iterator[Part]:
    c.only("hidden_act", "silu")
    c.agree(d_inner=c.intermediate_size, d_model=c.hidden_size, n_layer=c.num_hidden_layers)
    c.agree(rms_norm=True, ssm_cfg={})
    normed = c.model_type == "falcon_mamba"
    inner = {"inner_norm": "rms", "inner_norm_eps": c.mixer_rms_eps} if normed else {}
    for i in range(c.num_hidden_layers):
        at = f"backbone.layers.{i}"
        yield parts.mamba1(
            f"{at}.mixer",
            d_state=c.state_size,
            expand=c.intermediate_size / c.hidden_size,
            dt_rank=c.time_step_rank,
            d_conv=c.conv_kernel,
            dt_min=c.time_step_min,
            dt_max=c.time_step_max,
            dt_floor=c.time_step_floor,
            dt_init=c.word("time_step_init_scheme", {"random": "random", "constant": "constant"}),
            conv_bias=c.use_conv_bias,
            bias=c.use_bias,
            **inner,
        ).normed(f"{at}.norm")


FAMILY = Family(
    ("mamba", "falcon_mamba"),
    trunk,
    layers,
    ignored={
        "expand": "intermediate_size says it",
        "time_step_scale": "initial weights",
        **dict.fromkeys(
            ("use_mambapy", "use_associative_scan", "fused_add_norm"), "how it is computed, not what"
        ),
        "pad_vocab_size_multiple": "vocab_size is padded already",
    },
)
