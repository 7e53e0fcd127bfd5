"""Channel mixers.

Shape suffixes: b batch, l length, d d_model, f hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Stateless, Surroundings, init_linear
from archsearch.spec.layers import Mlp

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),
}


class MlpMixer(Stateless):
    """`mlp`: W_down act(W_up x), or W_down (act(W_gate x) * W_up x) where gated."""

    def __init__(self, spec: Mlp, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        hidden = spec.inner_width(around.d_model)
        self.gated = spec.gated
        self.activation = ACTIVATIONS[spec.activation]
        # One projection gives the gate and the values: one large matmul beats two small ones.
        self.up_proj = nn.Linear(around.d_model, hidden * (2 if spec.gated else 1), bias=spec.bias)
        self.down_proj = nn.Linear(hidden, around.d_model, bias=spec.bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.up_proj, generator)
        if self.down_proj is not None:
            init_linear(self.down_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        up = self.up_proj(x_bld)
        if self.gated:
            gate_blf, value_blf = up.chunk(2, dim=-1)
            inner_blf = self.activation(gate_blf) * value_blf
        else:
            inner_blf = self.activation(up)
        return inner_blf if self.down_proj is None else self.down_proj(inner_blf)
