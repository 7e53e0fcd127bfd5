"""Exact cost of a spec, layer by layer, without building it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from archsearch.spec.graph import Node
from archsearch.spec.model import ModelSpec

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a number, by dtype name."""


@dataclass(frozen=True)
class Cost:
    """Cost of a part: parameters (all, and those a token uses), FLOPs a token, state bytes a sequence."""

    params: int = 0
    active_params: int = 0
    flops: float = 0.0
    state_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.active_params + other.active_params,
            self.flops + other.flops,
            self.state_bytes + other.state_bytes,
        )

    def as_dict(self) -> dict[str, int]:
        return {
            "params": self.params,
            "active_params": self.active_params,
            "flops_per_token": round(self.flops),
            "state_bytes": self.state_bytes,
        }


@dataclass(frozen=True)
class LayerCost:
    """One entry of the stack: its block's cost, and for a parallel the costs within."""

    path: str
    kind: str
    cost: Cost
    branches: tuple[tuple[LayerCost, ...], ...] = ()
    merge: tuple[str, Cost] | None = None

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"path": self.path, "kind": self.kind, **self.cost.as_dict()}
        if self.merge is not None:
            found["merge"] = {"kind": self.merge[0], **self.merge[1].as_dict()}
            found["branches"] = [[layer.as_dict() for layer in branch] for branch in self.branches]
        return found


@dataclass(frozen=True)
class ModelCost:
    """Cost of a whole model; `total` is the sum of the layers, the embedding and the head."""

    layers: tuple[LayerCost, ...]
    embedding: Cost
    head: Cost
    total: Cost = field(init=False)

    def __post_init__(self) -> None:
        total = self.embedding + self.head
        for layer in self.layers:
            total = total + layer.cost
        object.__setattr__(self, "total", total)


def model_cost(spec: ModelSpec, context: int = 1024, dtype: str = "float32") -> ModelCost:
    """Cost of `spec` for sequences of `context` tokens with activations and caches in `dtype`.

    Raises ValueError for an unknown dtype or a context below 1 or beyond the learned positions.
    """
    if dtype not in ITEMSIZE:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of: {', '.join(ITEMSIZE)}")
    if context < 1:
        raise ValueError(f"context must be at least 1, found {context}")
    positions = spec.embedding.positions
    if positions is not None and context > positions.learned:
        raise ValueError(
            f"context {context} is beyond the {positions.learned} learned positions of {spec.name!r}"
        )
    layers = tuple(_node_cost(node, spec, context, ITEMSIZE[dtype]) for node in spec.nodes)
    table = spec.vocab * spec.d_model
    embedded = table + ((positions.learned if positions else 0) + spec.meta_tokens) * spec.d_model
    head = 0 if spec.embedding.tied else table
    norm = spec.norm.params(spec.d_model) if spec.final_norm else 0
    return ModelCost(
        layers,
        embedding=Cost(embedded, embedded),
        head=Cost(head + norm, head + norm, 2.0 * table),
    )


def _node_cost(node: Node, spec: ModelSpec, context: int, itemsize: int) -> LayerCost:
    """Cost of a block. A shared layer's weights are counted where they are first used."""
    branches = tuple(tuple(_node_cost(n, spec, context, itemsize) for n in b) for b in node.branches)
    merged = None
    cost = _norm_cost(node, spec)
    if node.merge is not None:
        merged = (node.merge.kind, _merge_cost(node, spec, context, itemsize))
        cost = cost + merged[1]
    elif not branches:
        cost = cost + _layer_cost(node, spec, context, itemsize)
    for layer in (layer for branch in branches for layer in branch):
        cost = cost + layer.cost
    if node.owner is not None:
        cost = replace(cost, params=0, active_params=0)
    return LayerCost(node.path, node.kind, cost + _lora_cost(node, spec, context), branches, merged)


def _norm_cost(node: Node, spec: ModelSpec) -> Cost:
    before = node.norm in ("pre", "sandwich", "entry")
    params = spec.norm.params(node.layer.input_width(spec.d_model)) if before else 0
    params += spec.norm.params(spec.d_model) if node.norm in ("post", "sandwich") else 0
    return Cost(params, params)


def _layer_cost(node: Node, spec: ModelSpec, context: int, itemsize: int) -> Cost:
    d, seen = spec.d_model, context + spec.meta_tokens
    return Cost(
        node.layer.params(d, node.project),
        node.layer.active_params(d, node.project),
        node.layer.flops(d, seen, node.project) * seen / context,
        node.layer.state_bytes(d, seen, itemsize),
    )


def _merge_cost(node: Node, spec: ModelSpec, context: int, itemsize: int) -> Cost:
    assert node.merge is not None
    d, seen, widths = spec.d_model, context + spec.meta_tokens, node.widths(spec.d_model)
    params = node.merge.params(d, widths)
    flops = node.merge.flops(d, widths, seen) * seen / context
    return Cost(params, params, flops, node.merge.state_bytes(d, seen, itemsize))


def _lora_cost(node: Node, spec: ModelSpec, context: int) -> Cost:
    """Of this use's own low-rank terms: each segment of a projection has its own pair of matrices."""
    if node.lora is None:
        return Cost()
    width = node.layer.input_width(spec.d_model)
    segments = [out for outs in node.layer.projections(spec.d_model).values() for out in outs]
    params = sum(node.lora * (width + out) for out in segments)
    return Cost(params, params, 2.0 * params * (context + spec.meta_tokens) / context)
