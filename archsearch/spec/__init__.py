"""The spec language: Pydantic only; this room never imports torch or ray."""

from archsearch.spec.cost import Cost, ModelCost, model_cost
from archsearch.spec.errors import SpecError
from archsearch.spec.graph import Node
from archsearch.spec.layers import Attention, Layer, Mamba2, Mlp
from archsearch.spec.loading import load_spec, parse_spec, to_yaml
from archsearch.spec.model import ModelSpec

__all__ = [
    "Attention",
    "Cost",
    "Layer",
    "Mamba2",
    "Mlp",
    "ModelCost",
    "ModelSpec",
    "Node",
    "SpecError",
    "load_spec",
    "model_cost",
    "parse_spec",
    "to_yaml",
]
