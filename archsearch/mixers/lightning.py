"""Lightning attention.

Shape suffixes: b batch, l length, d d_model, i inner width, h heads, e head_dim; q, k, v queries, keys and
values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.ssd import ssd_chunked, ssd_step
from archsearch.spec.layers.linear_attention import Lightning

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "none": lambda x: x,
}


class LightningState(NamedTuple):
    """Decayed sums of values times keys (batch, heads, values, keys)."""

    kv_bhee: Tensor


class LightningMixer(Mixer):
    """`lightning` (arXiv 2501.08313): a state-space dual with steps of 1, decays that nothing changes, and a
    group a head: S_t = exp(-rate) S_{t-1} + v_t k_t^T, and o_t = S_t q_t.

    The rows of in_proj are those of qkv_proj (q, k and v of the first head, then of the second, ...) and then
    those of output_gate of transformers' `MiniMaxLightningAttention`.
    """

    def __init__(self, spec: Lightning, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        assert spec.heads is not None, "resolve the spec first"
        self.heads, self.inner = spec.heads, spec.inner_width(around.d_model)
        self.activation = ACTIVATIONS[spec.activation]
        self.in_proj = nn.Linear(spec.input_width(around.d_model), 4 * self.inner, bias=False)
        self.norm = RMSNorm(self.inner, spec.norm_eps or around.eps)
        self.out_proj = nn.Linear(self.inner, around.d_model, bias=False) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        with torch.no_grad():
            self.norm.weight.fill_(1.0)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        return self.prefill(x_bld, call)[0]

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, LightningState]:
        qkv, gate = self._split(self.in_proj(x_bld))
        q, k, v = self._heads(masked(qkv, call))
        # Autocast would take the scan's matmuls, which sum over the context, in half precision.
        with torch.autocast(x_bld.device.type, enabled=False):
            o_blhe, state = ssd_chunked(v, v.new_ones(v.shape[:-1]), self._log_decays(v), k, q)
        return self._finish(o_blhe, gate, call), LightningState(state)

    def step(
        self, x_bd: Tensor, state: LightningState, call: Call | None = None
    ) -> tuple[Tensor, LightningState]:
        qkv, gate = self._split(self.in_proj(x_bd))
        q, k, v = self._heads(qkv)
        with torch.autocast(x_bd.device.type, enabled=False):
            o_bhe, kv_bhee = ssd_step(v, v.new_ones(v.shape[:-1]), self._log_decays(v), k, q, state.kv_bhee)
        return self._finish(o_bhe, gate, call), LightningState(kv_bhee)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values together; the gate."""
        return projected.split([3 * self.inner, self.inner], dim=-1)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k and v a head, (..., heads, head_dim) each, in float32 at least."""
        qkv = self.activation(qkv).to(torch.promote_types(qkv.dtype, torch.float32))
        return qkv.unflatten(-1, (self.heads, 3, -1)).unbind(-2)

    def _log_decays(self, like: Tensor) -> Tensor:
        """(heads,); the slopes of ALiBi (arXiv 2108.12409) times the scale, negative."""
        head = torch.arange(1, self.heads + 1, dtype=like.dtype, device=like.device)
        return -self.spec.decay_scale * torch.exp2(-8.0 * head / self.heads)

    def _finish(self, o_he: Tensor, gate_i: Tensor, call: Call | None) -> Tensor:
        """Norm over all heads, gate, output projection; leading axes are free."""
        o_i = o_he.flatten(-2)
        self.tell(call, "memory", o_i)
        y_i = self.norm(o_i).to(gate_i.dtype) * gate_i.sigmoid()
        return y_i if self.out_proj is None else self.out_proj(y_i)
