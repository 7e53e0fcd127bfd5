"""Channel mixers.

Shape suffixes: b batch, l length, d d_model or the input width, f hidden width, u outputs of the up
projection; leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Stateless, Surroundings, init_linear
from archsearch.mixers.kernels.limits import swiglu_problem
from archsearch.spec.layers import Mlp
from archsearch.spec.layers.mlp import GATED


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
    "reglu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


def hidden_features(up_u: Tensor, activation: str, gate_scale: float = 1.0) -> Tensor:
    """act(gate_scale * up), or act(gate_scale * gate) * value of the two halves where the activation is
    gated: (..., u) -> (..., f)."""
    gate_f, value_f = up_u.chunk(2, dim=-1) if activation in GATED else (up_u, None)
    if gate_scale != 1.0:
        gate_f = gate_f * gate_scale
    active_f = ACTIVATIONS[activation](gate_f)
    return active_f if value_f is None else active_f * value_f


class MlpMixer(Stateless):
    """`mlp`: W_down act(W_up x), or W_down (act(W_gate x) * W_up x) where gated."""

    def __init__(self, spec: Mlp, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        d_model = around.d_model
        # One projection gives the gate and the values: one large matmul beats two small ones.
        self.up_proj = nn.Linear(spec.input_width(d_model), spec.up_width(d_model), bias=spec.bias)
        self.down_proj = nn.Linear(spec.inner_width(d_model), d_model, bias=spec.bias) if project else None

        problem = swiglu_problem(spec.activation, spec.gate_scale)
        self.gate_kernel = around.kernels.choose("swiglu", problem, needed=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.up_proj, generator)
        if self.down_proj is not None:
            init_linear(self.down_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        up_blu = self.up_proj(x_bld)
        # torch.compile makes such a kernel by itself.
        kernel = None if torch.compiler.is_compiling() else self.gate_kernel.of(up_blu)
        if kernel is not None:
            inner_blf = kernel(up_blu)
        else:
            inner_blf = hidden_features(up_blu, self.spec.activation, self.spec.gate_scale)
        return inner_blf if self.down_proj is None else self.down_proj(inner_blf)
