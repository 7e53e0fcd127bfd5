"""Zamba (arXiv 2405.16712) and Zamba2 (arXiv 2411.15242): Mamba layers, and shared blocks.

Blocks of attention and an MLP are called again and again. A call reads the stream and the embeddings; what it
gives, times a matrix of the call's own, is added to the input of a Mamba layer, not to the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

import torch

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.fields import Fields
from archsearch.interop.rules import HEADS, Rule, linear

NORM_EPS = 1e-5
"""Of Zamba2's norm of gated outputs: a constant in transformers, whatever rms_norm_eps is."""

Make = Callable[[Fields, str], Part]
Called = Callable[[Fields, list[str], int], list[Part]]
"""The attention and the MLP of a call: from the names of the shared blocks so far, and the call's number."""


def trunk(c: Fields) -> Trunk:
    if not c.tie_word_embeddings:
        c.refuse("tie_word_embeddings", "without it transformers does not share the blocks either")
    return parts.trunk(c, norm="final_layernorm", eps=c.rms_norm_eps)


def zamba(c: Fields) -> Iterator[Part]:
    yield from layers(c, mamba1, zamba_call, blocks=1, at_shared="shared_transf")


def zamba2(c: Fields) -> Iterator[Part]:
    yield from layers(c, mamba2, zamba2_call, c.num_mem_blocks, at_shared="shared_transformer")


def layers(c: Fields, mamba: Make, called: Called, blocks: int, at_shared: str) -> Iterator[Part]:
    """blocks: how many there are; calls take them in turn."""

    def plain(c: Fields, at: str) -> Part:
        return mamba(c, f"{at}.mamba").normed(f"{at}.input_layernorm")

    def hybrid(c: Fields, at: str) -> Part:
        owners.extend([f"{at}.{at_shared}"] if len(owners) < blocks else [])
        call = called(c, owners, next(calls))
        joined = parts.linear_layer(f"{at}.linear").having(norm="none", residual=False)
        return parts.sequential(
            [
                parts.sequential([*call, joined], norm="none", residual=True),
                plain(c, f"{at}.mamba_decoder").having(residual=False),
            ],
            norm="none",
        )

    owners: list[str] = []
    calls = iter(range(c.num_hidden_layers + 1))
    for i, make in c.each("layers_block_type", {"linear_attention": plain, "hybrid": hybrid}):
        yield make(c, f"model.layers.{i}")


def zamba_call(c: Fields, owners: list[str], number: int) -> list[Part]:
    if number:
        return [parts.share("attention"), parts.share("mlp")]
    c.only("attention_hidden_size", 2 * c.hidden_size)
    at = owners[0]
    mlp = parts.mlp(
        f"{at}.feed_forward", hidden=c.intermediate_size, activation=c.word("hidden_act", parts.GATED)
    )
    return [
        attention(c, at).having(id="attention"),
        mlp.having(id="mlp", residual=False).normed(f"{at}.pre_ff_layernorm"),
    ]


def zamba2_call(c: Fields, owners: list[str], number: int) -> list[Part]:
    block = number % c.num_mem_blocks
    at, names = owners[block], [f"{kind}_{block + 1}" for kind in ("attention", "mlp")]
    if number >= c.num_mem_blocks:
        first, second = (parts.share(name) for name in names)
    else:
        first = attention(c, at, rope=parts.rope(c) if c.use_mem_rope else "none").having(id=names[0])
        second = (
            parts.mlp(
                f"{at}.feed_forward",
                up="gate_up_proj",
                hidden=c.intermediate_size,
                activation=c.word("hidden_act", parts.GATED),
                bias=c.add_bias_linear,
            )
            .having(id=names[1], residual=False)
            .normed(f"{at}.pre_ff_layernorm")
        )
    if c.use_shared_attention_adapter:
        adapters = [f"{at}.self_attn.linear_{kind}_adapter_list.{number}" for kind in "qkv"]
        first = parts.low_rank(first, "qkv_proj", c.adapter_rank, adapters)
    adapter = f"{at}.feed_forward.gate_up_proj_adapter_list.{number}"
    return [first, parts.low_rank(second, "up_proj", c.adapter_rank, [adapter])]


def attention(c: Fields, at: str, rope: object = "none") -> Part:
    head_dim = c.attention_head_dim
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=head_dim,
        rope=rope,
        scale=(head_dim / 2) ** -0.5,
        inputs=["embedding"],
        norm="pre",
    ).normed(f"{at}.input_layernorm")


def mamba1(c: Fields, at: str) -> Part:
    """Zamba's in_proj gives x and z in turns, a channel each; its heads' projections are one tensor each."""
    c.only("hidden_mamba_act", "silu")
    bias, inner = c.mamba_proj_bias, c.mamba_expand * c.hidden_size
    names = {"x_proj_weight": "x_proj.weight", "dt_proj_weight": "dt_proj.weight"}
    names |= {"dt_proj_bias": "dt_proj.bias", "A_log": "A_log", "D": "D"}
    rules = linear(f"{at}.in_proj", "layer.in_proj", bias)
    rules += parts.conv(f"{at}.conv1d", "layer.conv", c.mamba_conv_bias)
    rules += tuple(Rule((f"{at}.{name}",), f"layer.{ours}", HEADS) for name, ours in names.items())
    rules += linear(f"{at}.out_proj", "layer.out_proj", bias)
    fields = {
        "heads": c.n_mamba_heads,
        "d_state": c.mamba_d_state,
        "expand": c.mamba_expand,
        "dt_rank": c.mamba_dt_rank,
        "d_conv": c.mamba_d_conv,
        "dt_min": c.time_step_min,
        "dt_max": c.time_step_max,
        "dt_floor": c.time_step_floor,
        "conv_bias": c.mamba_conv_bias,
        "bias": bias,
    }
    return Part("mamba1", fields, rules).reordered(
        "layer.in_proj", torch.arange(2 * inner).view(-1, 2).T.flatten()
    )


def mamba2(c: Fields, at: str) -> Part:
    return parts.mamba2(
        at,
        heads=c.n_mamba_heads,
        head_dim=c.mamba_headdim,
        groups=c.mamba_ngroups,
        d_state=c.mamba_d_state,
        d_conv=c.mamba_d_conv,
        # transformers clamps at time_step_min.
        dt_limit=[c.time_step_min, inf],
        dt_min=c.time_step_min,
        dt_max=c.time_step_max,
        dt_floor=c.time_step_floor,
        norm_eps=parts.constant_eps(c, NORM_EPS),
        bias=c.add_bias_linear,
    )


ZAMBA = Family(
    ("zamba",),
    trunk,
    zamba,
    ignored={
        **dict.fromkeys(("attn_layer_period", "attn_layer_offset"), "layers_block_type says it"),
        **dict.fromkeys(("use_mamba_kernels", "use_associative_scan"), "how it is computed, not what"),
    },
)
ZAMBA2 = Family(
    ("zamba2",),
    trunk,
    zamba2,
    ignored={
        "mamba_expand": "mamba_headdim says it",
        "hybrid_layer_ids": "layers_block_type says it",
        "attention_hidden_size": "transformers sets it to 2 hidden_size",
        "use_conv_bias": "transformers does not read it: the bias is always there",
        "rope_parameters": "read where use_mem_rope is true",
        "use_long_context": "transformers does not read it",
        **dict.fromkeys(("kv_channels", "num_query_groups"), "transformers does not read them"),
        **dict.fromkeys(("use_mamba_kernels", "use_mem_eff_path"), "how it is computed, not what"),
    },
)
