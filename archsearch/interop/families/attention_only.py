"""Relatives of Llama: attention and an MLP or experts in turn, normed before or after.

Qwen2 (arXiv 2407.10671), Qwen3 with experts (arXiv 2505.09388), Mistral (arXiv 2310.06825), Mixtral (arXiv
2401.04088), Gemma (arXiv 2403.08295), OLMo 2 (arXiv 2501.00656) and 3, OLMoE (arXiv 2409.02060), Phi-3 (arXiv
2404.14219), SmolLM3 and Granite 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.families import granite, llama
from archsearch.interop.fields import Fields

Make = Callable[[Fields, str], Part]
NO_BIAS = {"bias": False, "output_bias": False}


def gemma_trunk(c: Fields) -> Trunk:
    held = str(c.dtype or "float32").removeprefix("torch.")
    return parts.trunk(
        c, eps=c.rms_norm_eps, unit_offset=True, scales={"embedding": parts.width_root(c, held)}
    )


def stack(c: Fields, mixer: Make, channel: Make) -> Iterator[Part]:
    """The same two blocks again and again, normed before."""
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        yield from pair(at, mixer(c, at), channel(c, at))


def pair(at: str, mixer: Part, channel: Part) -> tuple[Part, Part]:
    return mixer.normed(f"{at}.input_layernorm"), channel.normed(f"{at}.post_attention_layernorm")


def qwen2(c: Fields) -> Iterator[Part]:
    kinds = {"full_attention": biased, "sliding_attention": biased_window}
    for i, make in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        yield from pair(at, make(c, at), mlp(c, at))


def qwen3_moe(c: Fields) -> Iterator[Part]:
    c.understood(mlp, experts)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        plain = i in c.mlp_only_layers or not c.num_experts or (i + 1) % c.decoder_sparse_step
        attend = configured(c, at, qk_norm="head", window=c.sliding_window)
        yield from pair(at, attend, (mlp if plain else experts)(c, at))


def ministral(c: Fields) -> Iterator[Part]:
    def whole(c: Fields, at: str) -> Part:
        return attention(c, at, **NO_BIAS)

    def sliding(c: Fields, at: str) -> Part:
        return attention(c, at, window=c.needed("sliding_window"), **NO_BIAS)

    for i, make in c.each("layer_types", {"full_attention": whole, "sliding_attention": sliding}):
        at = f"model.layers.{i}"
        yield from pair(at, make(c, at), mlp(c, at))


def mistral(c: Fields) -> Iterator[Part]:
    yield from stack(c, windowed, mlp)


def mixtral(c: Fields) -> Iterator[Part]:
    yield from stack(c, windowed, mixtral_experts)


def gemma(c: Fields) -> Iterator[Part]:
    c.only("use_bidirectional_attention", None, False)
    yield from stack(c, configured, mlp)


def granite3(c: Fields) -> Iterator[Part]:
    yield from stack(c, scaled, lambda c, at: mlp(c, at, bias=c.mlp_bias))


def granite_moe(c: Fields) -> Iterator[Part]:
    yield from stack(c, scaled, granite.experts)


def scaled(c: Fields, at: str) -> Part:
    return configured(c, at, scale=c.attention_multiplier)


def phi3(c: Fields) -> Iterator[Part]:
    def fused(c: Fields, at: str) -> Part:
        rope = parts.rope(c, partial=True)
        return attention(c, at, qkv=("qkv_proj",), rope=rope, window=c.sliding_window, **NO_BIAS)

    yield from stack(c, fused, lambda c, at: mlp(c, at, up="gate_up_proj"))


def smollm3(c: Fields) -> Iterator[Part]:
    def sliding(c: Fields, at: str, **fields: Any) -> Part:
        return configured(c, at, window=c.needed("sliding_window"), **fields)

    kinds = {"full_attention": configured, "sliding_attention": sliding}
    for i, make in c.each("layer_types", kinds):
        at = f"model.layers.{i}"
        attend = make(c, at, rope=parts.rope(c) if c.no_rope_layers[i] else "none")
        yield from pair(at, attend, mlp(c, at, bias=c.mlp_bias))


def olmo2(c: Fields) -> Iterator[Part]:
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        attend = configured(c, at, qk_norm="full")
        yield attend.normed(after=f"{at}.post_attention_layernorm")
        yield mlp(c, at).normed(after=f"{at}.post_feedforward_layernorm")


def olmo3(c: Fields) -> Iterator[Part]:
    def whole(c: Fields, at: str, kind: str = "full_attention", **fields: Any) -> Part:
        return configured(c, at, qk_norm="full", rope=parts.rope(c, kind_of_layer=kind), **fields)

    def sliding(c: Fields, at: str) -> Part:
        return whole(c, at, "sliding_attention", window=c.needed("sliding_window"))

    for i, make in c.each("layer_types", {"full_attention": whole, "sliding_attention": sliding}):
        at = f"model.layers.{i}"
        yield make(c, at).normed(after=f"{at}.post_attention_layernorm")
        yield mlp(c, at).normed(after=f"{at}.post_feedforward_layernorm")


def olmoe(c: Fields) -> Iterator[Part]:
    c.only("clip_qkv", None)
    yield from stack(c, lambda c, at: configured(c, at, qk_norm="full"), olmoe_experts)


def attention(c: Fields, at: str, rope: Any = None, **fields: Any) -> Part:
    return parts.attention(
        f"{at}.self_attn",
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.get("head_dim"),
        rope=rope or parts.rope(c),
        **fields,
    )


def configured(c: Fields, at: str, **fields: Any) -> Part:
    return attention(c, at, bias=c.attention_bias, output_bias=c.attention_bias, **fields)


def biased(c: Fields, at: str) -> Part:
    return attention(c, at, bias=True, output_bias=False)


def biased_window(c: Fields, at: str) -> Part:
    return attention(c, at, bias=True, output_bias=False, window=c.needed("sliding_window"))


def windowed(c: Fields, at: str) -> Part:
    return attention(c, at, window=c.sliding_window, **NO_BIAS)


def mlp(c: Fields, at: str, **fields: Any) -> Part:
    activation = c.word("hidden_act", parts.GATED)
    return parts.mlp(f"{at}.mlp", hidden=c.intermediate_size, activation=activation, **fields)


def moe(c: Fields, at: str, **fields: Any) -> Part:
    return parts.moe(
        f"{at}.mlp",
        experts=c.num_experts,
        top_k=c.num_experts_per_tok,
        activation=c.word("hidden_act", parts.GATED),
        renormalise_eps=0.0,
        balance=c.router_aux_loss_coef,
        **fields,
    )


def experts(c: Fields, at: str) -> Part:
    return moe(c, at, hidden=c.moe_intermediate_size, renormalise=c.norm_topk_prob)


def mixtral_experts(c: Fields, at: str) -> Part:
    return moe(c, at, hidden=c.intermediate_size, renormalise=True)


def olmoe_experts(c: Fields, at: str) -> Part:
    return moe(c, at, hidden=c.intermediate_size, renormalise=c.norm_topk_prob)


FAMILIES = (
    Family(
        ("qwen2",),
        llama.trunk,
        qwen2,
        ignored=dict.fromkeys(("use_sliding_window", "max_window_layers"), "layer_types says it"),
    ),
    Family(
        ("qwen3_moe",),
        llama.trunk,
        qwen3_moe,
        ignored={"use_sliding_window": "transformers sets sliding_window to null by it"},
    ),
    Family(("ministral",), llama.trunk, ministral),
    Family(("mistral",), llama.trunk, mistral),
    Family(("mixtral",), llama.trunk, mixtral, ignored={"router_jitter_noise": "for training"}),
    Family(("gemma",), gemma_trunk, gemma),
    Family(("granite",), granite.trunk, granite3),
    Family(("granitemoe", "granitemoeshared"), granite.trunk, granite_moe),
    Family(
        ("phi3",),
        llama.trunk,
        phi3,
        ignored={
            "resid_pdrop": "for training",
            "original_max_position_embeddings": "of longrope, which is refused",
        },
    ),
    Family(
        ("smollm3",),
        llama.trunk,
        smollm3,
        ignored={
            "no_rope_layer_interval": "no_rope_layers says it",
            "use_sliding_window": "layer_types says it",
            "rope_parameters": "read where a layer is rotated",
        },
    ),
    Family(("olmo2",), llama.trunk, olmo2),
    Family(("olmo3",), llama.trunk, olmo3),
    Family(("olmoe",), llama.trunk, olmoe),
)
