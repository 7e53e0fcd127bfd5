"""The gated memory unit.

Shape suffixes: b batch, l length, d d_model, w channels of the memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Stateless, Surroundings, init_linear
from archsearch.spec.layers.memory import GatedMemory


class GatedMemoryMixer(Stateless):
    """`gated_memory` (arXiv 2507.06607): y = W_o (m * silu(W_i x)), m being another layer's memory."""

    def __init__(self, spec: GatedMemory, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        width = spec.inner_width(around.d_model)
        self.in_proj = nn.Linear(spec.input_width(around.d_model), width, bias=False)
        self.out_proj = nn.Linear(width, around.d_model, bias=False) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        gate_blw = F.silu(self.in_proj(x_bld))
        y_blw = gate_blw * self.told(call, "memory").to(gate_blw.dtype)
        return y_blw if self.out_proj is None else self.out_proj(y_blw)
