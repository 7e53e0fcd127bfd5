"""Every listed mixer with further inputs, and with low-rank terms of one use.

Shape suffixes: b batch, l length.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archsearch.compiler.lora import LoraLinear
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec, model_cost
from contract.building import D_MODEL, VARIANTS, continued, ids_of, layer_of, model_of, relative

READERS = {"gated_memory"}
"""Kinds that exist only beside another layer."""

FIELDS = {kind: VARIANTS.get(kind, [{}])[-1] for kind in MIXERS if kind not in READERS}
ADAPTED = [kind for kind, fields in FIELDS.items() if layer_of(kind, fields).projections(D_MODEL)]


def spec_of(*layers: Any) -> ModelSpec:
    return ModelSpec.model_validate({"vocab_size": 17, "d_model": D_MODEL, "layers": list(layers)})


def hold(spec: ModelSpec) -> Any:
    """Costs are exact, and steps are what one forward gives."""
    model, ids_bl = model_of(spec), ids_of(spec, 2, 9)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec).total.params
    logits, _ = continued(model, ids_bl, 4)
    with torch.no_grad():
        assert relative(logits, model(ids_bl)) <= 1e-10
    return model


@pytest.mark.parametrize("kind", FIELDS)
def test_reads_further_inputs(kind: str) -> None:
    wide = {**FIELDS[kind], "inputs": ["embedding", "first"]}
    spec = spec_of({"mlp": {"hidden": 8, "id": "first"}}, {kind: wide})
    model = hold(spec)
    assert model.layers[1].norm.weight.shape == (3 * D_MODEL,)
    flops = [
        layer.cost.flops
        for layer in model_cost(
            spec_of({kind: FIELDS[kind]}, {kind: wide | {"inputs": ["embedding"]}})
        ).layers
    ]
    assert flops[1] > flops[0]


@pytest.mark.parametrize("kind", ADAPTED)
def test_takes_low_rank_terms(kind: str) -> None:
    layer = {kind: {**FIELDS[kind], "id": "shared", "lora": 2}}
    model = hold(spec_of(layer, {"share": "shared", "lora": 3}, {"share": "shared"}))
    first, second, third = (block.layer for block in model.layers)
    for name, widths in layer_of(kind, FIELDS[kind]).projections(D_MODEL).items():
        projection = getattr(first, name)
        assert isinstance(projection, LoraLinear)
        assert sum(widths) == projection.base.out_features
        assert getattr(second, name).base.weight is projection.base.weight
        assert getattr(third, name).weight is projection.base.weight
