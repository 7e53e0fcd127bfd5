"""What a spec's model computes, apart from how its weights began: by this two specs are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from archsearch.spec.graph import Node
from archsearch.spec.model import STRUCTURE, ModelSpec

INITIAL = frozenset({"dt_min", "dt_max", "dt_floor", "dt_init", "A_init", "a_init", "balance", "bias_rate"})
"""Fields of layers that say how weights begin or what training adds to its loss: none changes the function
of a trained model, and a config may lack them. So is `std` of the embedding."""

TINY = 1e-30
"""A least step size that is as good as 0, above which configs may need it: no sum is moved by such a step."""

NOTHING = 1e-12
"""A number that is lost beside the sum of the largest of some probabilities."""


def function(spec: ModelSpec) -> dict[str, Any]:
    """All that says what the model computes, every default written out."""
    found = spec.model_dump(include={"d_model", "final_norm", "scales", "meta_tokens"})
    found |= {"vocab": spec.vocab, "number of layers": len(spec.nodes)}
    found["norm"] = spec.norm.model_dump(exclude={"placement"})
    found["embedding"] = spec.embedding.model_dump(exclude={"std"})
    return found | {node.path: _function_of(node, spec) for node in spec.nodes}


def _function_of(node: Node, spec: ModelSpec) -> dict[str, Any]:
    hidden = STRUCTURE | INITIAL | {"id", "norm", "residual"} | set(node.layer.references.values())
    found: dict[str, Any] = {
        "kind": node.kind,
        "norm": node.norm,
        "residual": node.residual,
        "project": node.project,
    }
    found |= node.layer.model_dump(exclude=set(hidden))
    for name in found.keys() & {"norm_eps", "inner_norm_eps"}:
        found[name] = found[name] or spec.norm.eps
    if found.get("router") == "softmax" and found["renormalise_eps"] <= NOTHING:
        found["renormalise_eps"] = 0.0
    if "dt_limit" in found:
        low, high = found["dt_limit"]
        found["dt_limit"] = [0.0 if low <= TINY else low, high]
    found |= {"share": node.owner, "lora": node.lora, "inputs": list(node.inputs), "reads": dict(node.reads)}
    for i, branch in enumerate(node.branches):
        found |= {f"branches.{i}.{j}": _function_of(inner, spec) for j, inner in enumerate(branch)}
    return found | ({"merge": {"kind": node.merge.kind, **node.merge.model_dump()}} if node.merge else {})


def differences(ours: ModelSpec, theirs: ModelSpec) -> Iterator[str]:
    """What the one model computes and the other does not, by its place; none where they are the same.

    Floats that agree to nine digits are equal: configs hold some as reciprocals.
    """
    return _differences(function(ours), function(theirs), "")


def _differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if "kind" in ours and ours["kind"] == theirs.get("kind"):
            path = f"{path}: {ours['kind']}"
        for name in [*ours, *(theirs.keys() - ours.keys())]:
            yield from _differences(ours.get(name), theirs.get(name), f"{path}{': ' * bool(path)}{name}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{path} {i}")
    elif not _same(ours, theirs):
        yield f"{path} {_shown(ours)}, where it has {_shown(theirs)}"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float | int) and isinstance(theirs, float | int):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return ours == theirs


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
