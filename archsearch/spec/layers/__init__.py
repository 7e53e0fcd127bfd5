"""One class a layer kind: its fields, and its exact cost.

Every module of this folder is loaded, and defining a subclass of `Layer` is what makes its kind known to the
language; the torch module that computes it is listed in `archsearch.mixers.table`.
"""

from importlib import import_module
from pkgutil import iter_modules

from archsearch.spec.layers.attention import Attention, mean_keys
from archsearch.spec.layers.base import RECURRENT_ITEMSIZE, Layer, Norm, Size, Spec, Unbounded
from archsearch.spec.layers.mamba import Mamba1, Mamba2
from archsearch.spec.layers.mlp import Mlp
from archsearch.spec.layers.rope import Rope

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "RECURRENT_ITEMSIZE",
    "Attention",
    "Layer",
    "Mamba1",
    "Mamba2",
    "Mlp",
    "Norm",
    "Rope",
    "Size",
    "Spec",
    "Unbounded",
    "mean_keys",
]
