"""Which families an export may be written as, and the configs that they would have.

A proposal may be wrong: whoever uses one reads it back with the family's own import table first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from archsearch.interop.function import TINY
from archsearch.interop.names import Config, rope
from archsearch.spec.graph import Node
from archsearch.spec.model import ModelSpec


def word(node: Node) -> str:
    """What `layer_types` calls a layer."""
    if node.kind in ("attention", "mla"):
        return "sliding_attention" if getattr(node.layer, "window", None) else "full_attention"
    words = {"gated_conv": "conv", "sequential": "hybrid", "mlp": "mlp", "moe": "moe"}
    return words.get(node.kind, "linear_attention")


@dataclass(frozen=True)
class Layout:
    """A spec as configs see it: `units`, the nodes of each of their layers, and the first layer of a kind."""

    spec: ModelSpec
    units: Sequence[tuple[Node, ...]]

    @property
    def nodes(self) -> Iterator[Node]:
        return (inner for node in self.spec.nodes for inner in node.walk())

    def first(self, kind: str) -> Any:
        return next((node.layer for node in self.nodes if node.kind == kind), None)

    def words(self) -> list[str]:
        return [word(unit[0]) for unit in self.units]


@dataclass(frozen=True)
class Target:
    """A family that an export may be written as.

    model_type: as in config.json. kinds: of the layers that it has. pair: whether a layer of its config is
    a mixer and a channel mixer. mixed: whether its cache needs attention and recurrent layers both. extra:
    fields that have no common name, or another meaning here. shares: whether layers may be used again.
    """

    model_type: str
    kinds: tuple[str, ...]
    pair: bool = True
    mixed: bool = False
    shares: bool = False
    extra: Callable[[Layout], Config] = field(default=lambda layout: {})


class Mismatch(Exception):
    """Why a target is not the spec's."""


def _clamped(layout: Layout) -> Config:
    # Step sizes are clamped at time_step_min, which is above 0.
    return {"time_step_min": max(TINY, layout.first("mamba2").dt_limit[0])}


def _falcon_h1(layout: Layout) -> Config:
    mamba2 = layout.first("mamba2")
    if mamba2 is not None and mamba2.gated_norm == "before" and mamba2.groups > 1:
        raise Mismatch("transformers fails to decode a norm before the gate where there are groups")
    return {}


def _zamba2(layout: Layout) -> Config:
    blocks = sum(node.kind == "mlp" and node.owner is None for node in layout.nodes)
    return _clamped(layout) | {"num_mem_blocks": blocks}


def _lfm3(layout: Layout) -> Config:
    """Rotations by kind of layer; of a head's fastest pairs alone they are called proportional."""
    ropes = {}
    for unit in layout.units:
        layer: Any = unit[0].layer
        if unit[0].kind == "attention" and layer.rope is not None:
            half, turned = layer.head_dim // 2, layer.rope.rotary_dim(layer.head_dim) // 2
            part = {"rope_type": "proportional", "partial_rotary_factor": turned / half}
            theta = {"rope_theta": layer.rope.theta ** (half / turned)}
            ropes[word(unit[0])] = theta | (part if turned < half else {"rope_type": "default"})
    sandwich = layout.spec.nodes[0].norm == "sandwich"
    return _gemma2(layout) | {"rope_parameters": ropes, "use_sandwich_norm": sandwich}


def _granite(layout: Layout) -> Config:
    return {} if layout.first("moe") else {"num_local_experts": 0}


def _bamba(layout: Layout) -> Config:
    return {"attn_layer_indices": [i for i, kind in enumerate(layout.words()) if kind == "full_attention"]}


def _olmo_hybrid(layout: Layout) -> Config:
    # Where rope_parameters say nothing, there is a default base.
    unrotated = {"rope_parameters": {"rope_type": "default", "rope_theta": None}}
    return {} if layout.first("attention").rope is not None else unrotated


def _lfm2(layout: Layout) -> Config:
    return {"block_auto_adjust_ff_dim": False}


def _lfm2_moe(layout: Layout) -> Config:
    return {"num_dense_layers": sum(unit[-1].kind == "mlp" for unit in layout.units)}


def _qwen3_next(layout: Layout) -> Config:
    dense = [i for i, unit in enumerate(layout.units) if unit[-1].kind == "mlp"]
    return {"mlp_only_layers": dense} if layout.first("moe") else {"num_experts": 0}


def _gemma2(layout: Layout) -> Config:
    """The first window; where others differ, the table does not give the same spec back."""
    windowed = [unit[0].layer for unit in layout.units if word(unit[0]) == "sliding_attention"]
    return {"sliding_window": getattr(windowed[0], "window", None)} if windowed else {}


def _qwen3(layout: Layout) -> Config:
    return _gemma2(layout) | {"use_sliding_window": "sliding_attention" in layout.words()}


def _minimax(layout: Layout) -> Config:
    # Its attention layers are all windowed, or none is, under one word.
    words = ["full_attention" if word == "sliding_attention" else word for word in layout.words()]
    window = layout.first("attention").window
    if window is not None and words[0] != "full_attention":
        raise Mismatch("transformers reads a cache's length off its first layer, which has no window")
    return {"layer_types": words, "sliding_window": window}


def _olmo3(layout: Layout) -> Config:
    """Rotations by kind of layer."""
    ropes = {word(unit[0]): rope(unit[0].layer, layout.spec) for unit in layout.units}
    return _gemma2(layout) | {"rope_parameters": ropes}


def _one_window(layout: Layout) -> Config:
    """The window of all attention layers."""
    return {"sliding_window": layout.first("attention").window}


def _qwen3_moe(layout: Layout) -> Config:
    window = _one_window(layout)
    return _qwen3_next(layout) | window | {"use_sliding_window": window["sliding_window"] is not None}


def _smollm3(layout: Layout) -> Config:
    layers: list[Any] = [unit[0].layer for unit in layout.units]
    return _qwen3(layout) | {"no_rope_layers": [int(layer.rope is not None) for layer in layers]}


def _deepseek_v3(layout: Layout) -> Config:
    turned = layout.first("mla").rope
    dense = sum(unit[-1].kind == "mlp" for unit in layout.units)
    return {"first_k_dense_replace": dense, "rope_interleave": turned is not None and turned.interleaved}


def _recurrent_gemma(layout: Layout) -> Config:
    words = {"linear_attention": "recurrent", "sliding_attention": "attention", "full_attention": "attention"}
    attention, mlp = layout.first("attention"), layout.first("mlp")
    return {
        "block_types": [words[word] for word in layout.words()],
        "attention_window_size": attention.window,
        "intermediate_size": 2 * mlp.hidden,
    }


def _jamba(layout: Layout) -> Config:
    """Attention and experts come at regular places."""
    attention = _every([unit[0].kind == "attention" for unit in layout.units])
    experts = _every([unit[-1].kind == "moe" for unit in layout.units])
    return {
        **dict(zip(("attn_layer_period", "attn_layer_offset"), attention, strict=True)),
        **dict(zip(("expert_layer_period", "expert_layer_offset"), experts, strict=True)),
    }


def _every(there: list[bool]) -> tuple[int, int]:
    """Period and offset of the places that hold, if they are regular; beyond the last if there are none."""
    places = [i for i, held in enumerate(there) if held]
    if not places:
        return len(there) + 1, len(there)
    return places[1] - places[0] if len(places) > 1 else max(len(there), places[0] + 1), places[0]


def _kimi_linear(layout: Layout) -> Config:
    return {"mlp_layer_types": ["sparse" if unit[-1].kind == "moe" else "dense" for unit in layout.units]}


TARGETS: tuple[Target, ...] = (
    Target("nemotron_h", ("attention", "mamba2", "mlp", "moe"), pair=False, mixed=True, extra=_clamped),
    Target("granitemoehybrid", ("attention", "mamba2", "mlp", "moe"), mixed=True, extra=_granite),
    Target("olmo_hybrid", ("attention", "gated_deltanet", "mlp"), mixed=True, extra=_olmo_hybrid),
    Target("lfm2", ("attention", "gated_conv", "mlp"), mixed=True, extra=_lfm2),
    Target("lfm2_moe", ("attention", "gated_conv", "mlp", "moe"), mixed=True, extra=_lfm2_moe),
    Target("lfm3", ("attention", "gated_conv", "mlp"), mixed=True, extra=_lfm3),
    Target("falcon_h1", ("parallel", "attention", "mamba2", "mlp"), extra=_falcon_h1),
    Target("qwen3_5_text", ("attention", "gated_deltanet", "mlp"), mixed=True),
    Target("qwen3_next", ("attention", "gated_deltanet", "mlp", "moe"), mixed=True, extra=_qwen3_next),
    Target("qwen3_5_moe_text", ("attention", "gated_deltanet", "moe"), mixed=True),
    Target("bamba", ("attention", "mamba2", "mlp"), mixed=True, extra=_bamba),
    Target("kimi_linear", ("mla", "kda", "mlp", "moe"), mixed=True, extra=_kimi_linear),
    Target("bailing_hybrid", ("mla", "kda", "mlp", "moe"), mixed=True, extra=_kimi_linear),
    Target(
        "zamba2",
        ("sequential", "linear", "attention", "mamba2", "mlp"),
        pair=False,
        mixed=True,
        shares=True,
        extra=_zamba2,
    ),
    Target(
        "zamba", ("sequential", "linear", "attention", "mamba1", "mlp"), pair=False, mixed=True, shares=True
    ),
    Target("jamba", ("attention", "mamba1", "mlp", "moe"), mixed=True, extra=_jamba),
    Target("minimax", ("attention", "lightning", "moe"), mixed=True, extra=_minimax),
    Target("recurrent_gemma", ("attention", "rglru", "mlp"), mixed=True, extra=_recurrent_gemma),
    Target("llama", ("attention", "mlp")),
    Target("qwen3", ("attention", "mlp"), extra=_qwen3),
    Target("gemma2", ("attention", "mlp"), extra=_gemma2),
    Target("qwen2", ("attention", "mlp"), extra=_qwen3),
    Target("qwen3_moe", ("attention", "mlp", "moe"), extra=_qwen3_moe),
    Target("mistral", ("attention", "mlp"), extra=_one_window),
    Target("mixtral", ("attention", "moe"), extra=_one_window),
    Target("gemma", ("attention", "mlp")),
    Target("granite", ("attention", "mlp")),
    Target("smollm3", ("attention", "mlp"), extra=_smollm3),
    Target("olmo2", ("attention", "mlp")),
    Target("olmo3", ("attention", "mlp"), extra=_olmo3),
    Target("ministral", ("attention", "mlp"), extra=_gemma2),
    Target("granitemoe", ("attention", "moe")),
    Target("granitemoeshared", ("attention", "moe")),
    Target("olmoe", ("attention", "moe")),
    Target("phi3", ("attention", "mlp"), extra=_one_window),
    Target("deepseek_v3", ("mla", "mlp", "moe"), extra=_deepseek_v3),
    Target("mamba2", ("mamba2",), pair=False),
    Target("mamba", ("mamba1",), pair=False),
    Target("falcon_mamba", ("mamba1",), pair=False),
)
"""In the order in which an export prefers them: first the hybrids that serving engines know."""
