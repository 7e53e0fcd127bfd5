"""LFM3: gated short convolutions, windows and full attention gated a head, each followed by SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from math import nextafter
from typing import Any

import torch
from torch import Tensor

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part
from archsearch.interop.families import lfm2
from archsearch.interop.fields import Fields


def layers(c: Fields) -> Iterator[Part]:
    kinds = {"conv": lfm2.conv, "full_attention": attention, "sliding_attention": windowed}
    for i, mixer in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        mlp = parts.mlp(f"{at}.feed_forward", up=("w1", "w3"), down="w2", hidden=c.intermediate_size)
        if c.use_sandwich_norm:
            yield mixer(c, at).normed(f"{at}.operator_norm", f"{at}.post_operator_norm")
            yield mlp.normed(f"{at}.ffn_norm", f"{at}.post_ffn_norm")
        else:
            yield mixer(c, at).normed(f"{at}.operator_norm")
            yield mlp.normed(f"{at}.ffn_norm")


def windowed(c: Fields, at: str) -> Part:
    return attention(c, at, "sliding_attention", window=c.needed("sliding_window"))


def attention(c: Fields, at: str, kind: str = "full_attention", **fields: Any) -> Part:
    heads, kv_heads, gated = c.num_attention_heads, c.num_key_value_heads, c.use_attention_gate
    if gated and c.attention_bias:
        c.refuse("attention_bias", "the gate would have no bias, where queries, keys and values have one")
    rope, order = rotation(c, kind)
    part = parts.attention(
        f"{at}.self_attn",
        qkv=("q_proj", "k_proj", "v_proj", *(("g_proj",) if gated else ())),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=c.head_dim,
        rope=rope,
        qk_norm="head",
        bias=c.attention_bias,
        output_bias=c.attention_bias,
        **({"gate": "head"} if gated else {}),
        **fields,
    )
    if order is None:
        return part
    rotated = heads + kv_heads
    rows = (torch.arange(rotated)[:, None] * c.head_dim + order).flatten()
    others = torch.arange(kv_heads * c.head_dim + (heads if gated else 0)) + len(rows)
    part = part.reordered("layer.qkv_proj", torch.cat([rows, others]))
    return part.reordered("layer.q_norm", order).reordered("layer.k_norm", order)


def rotation(c: Fields, kind: str) -> tuple[dict[str, Any], Tensor | None]:
    """The field `rope` of a kind of layer, and the order of a head's channels in which it rotates the first.

    `proportional` turns the fastest pairs of a whole head, by their own speeds: pairs that stand as far apart
    as in a head that is rotated whole. Side by side they are a smaller head's, of a smaller base.
    """
    given = {name: value for name, value in c.rope_parameters[kind].items() if value is not None}
    word, theta = given.pop("rope_type", "default"), float(given.pop("rope_theta"))
    share = given.pop("partial_rotary_factor", 1) if word == "proportional" else 1
    if word not in ("default", "proportional") or given:
        c.refuse("rope_parameters", f"{kind}: rope_type {word!r} with {given or 'it'} is not supported")
    if share == 1:
        return {"theta": theta}, None
    pairs, half = int(share * c.head_dim // 2), c.head_dim // 2
    fraction = 2 * pairs / c.head_dim
    if int(fraction * c.head_dim) < 2 * pairs:
        fraction = nextafter(fraction, 1)
    channel = torch.arange(half)
    order = [channel[:pairs], half + channel[:pairs], channel[pairs:], half + channel[pairs:]]
    return {"theta": theta ** (pairs / half), "fraction": fraction}, torch.cat(order)


FAMILY = Family(("lfm3",), lfm2.trunk, layers)
