"""A plain linear map.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archsearch.mixers.base import Call, Stateless, Surroundings, init_linear
from archsearch.spec.layers.linear import Linear


class LinearMixer(Stateless):
    """`linear`: W x (+ b); without its projection, x itself."""

    def __init__(self, spec: Linear, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        width = spec.input_width(around.d_model)
        self.out_proj = nn.Linear(width, around.d_model, bias=spec.bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        return x_bld if self.out_proj is None else self.out_proj(x_bld)
