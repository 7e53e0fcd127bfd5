"""Mamba-2 (arXiv 2405.21060) as transformers keeps it."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, stem="backbone", embedding="embeddings", norm="norm_f", eps=c.layer_norm_epsilon)


def layers(c: Fields) -> Iterator[Part]:
    c.only("hidden_act", "silu")
    for i in range(c.num_hidden_layers):
        at = f"backbone.layers.{i}"
        yield parts.mamba2(
            f"{at}.mixer",
            heads=c.num_heads,
            head_dim=c.head_dim,
            groups=c.n_groups,
            d_state=c.state_size,
            d_conv=c.conv_kernel,
            dt_limit=parts.dt_limit(c),
            dt_min=c.time_step_min,
            dt_max=c.time_step_max,
            dt_floor=c.time_step_floor,
            conv_bias=c.use_conv_bias,
            bias=c.use_bias,
        ).normed(f"{at}.norm")


FAMILY = Family(
    ("mamba2",),
    trunk,
    layers,
    ignored={
        "expand": "transformers checks it against the heads",
        "time_step_rank": "transformers does not use it",
    },
)
