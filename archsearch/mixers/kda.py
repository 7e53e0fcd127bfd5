"""Kimi Delta Attention.

Shape suffixes: b batch, l length, d d_model, c conv channels, i inner width, h heads, k key_dim, v value_dim
(both head_dim), r gate_rank, f decays before their activation; j the convolution's earlier tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.delta_rule import unit_vectors
from archsearch.mixers.kda_rule import kda_chunked, kda_step
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.short_conv import ShortConv
from archsearch.mixers.step_sizes import draw_step_bias
from archsearch.spec.layers.deltanet import Kda


class KdaState(NamedTuple):
    """The convolution's last inputs (batch, d_conv - 1, channels); the state (batch, heads, key, value)."""

    conv_bjc: Tensor
    delta_bhkv: Tensor


class _Parts(NamedTuple):
    """What the input projection gives: q, k and v together; the decays', the gate's; writing strengths'."""

    qkv: Tensor
    f: Tensor
    z: Tensor
    b: Tensor


class KdaMixer(Mixer):
    """`kda` (arXiv 2510.26692).

    The rows of in_proj are those of q_proj, k_proj, v_proj, f_a_proj, g_a_proj and b_proj of transformers'
    `KimiLinearDeltaAttention`, whose f_b_proj and g_b_proj are f_proj and g_proj here; with `gate_rank: full`
    f_proj and g_proj of `BailingHybridDeltaAttention` take the places of f_a_proj and g_a_proj, and there are
    no others. dt_bias and A_log (flat) are the forget gate's, norm is o_norm, out_proj is o_proj.
    """

    def __init__(self, spec: Kda, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        d_model = around.d_model
        self.inner, self.head_dim = spec.inner_width(d_model), spec.head_dim
        self.gate_width = spec.gate_width(d_model)
        self.heads = self.inner // self.head_dim
        self.in_proj = nn.Linear(spec.input_width(d_model), spec.in_width(d_model), bias=False)
        self.conv = ShortConv(3 * self.inner, spec.d_conv, bias=False, silu=True, kernels=around.kernels)
        full = spec.gate_rank == "full"
        self.f_proj = None if full else nn.Linear(self.gate_width, self.inner, bias=False)
        self.g_proj = None if full else nn.Linear(self.gate_width, self.inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.inner))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.norm = RMSNorm(self.head_dim, spec.norm_eps or around.eps)
        self.out_proj = nn.Linear(self.inner, d_model, bias=False) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        for linear in (self.in_proj, self.f_proj, self.g_proj, self.out_proj):
            if linear is not None:
                init_linear(linear, generator)
        self.conv.reset_parameters(generator)
        with torch.no_grad():
            draw_step_bias(self.dt_bias, self.spec, generator)
            slow, fast = self.spec.A_init
            # From the upper end down: a rate of exactly 0 has no logarithm.
            self.A_log.copy_((fast - (fast - slow) * torch.rand(self.heads, generator=generator)).log())
            self.norm.weight.fill_(1.0)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        parts = self._split(self.in_proj(x_bld))
        qkv = masked(self.conv(masked(parts.qkv, call)), call)
        return self._finish(self._scan(qkv, parts)[0], parts.z, call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, KdaState]:
        parts = self._split(self.in_proj(x_bld))
        qkv, conv_state = self.conv.prefill(masked(parts.qkv, call))
        o_blhv, delta_state = self._scan(masked(qkv, call), parts)
        return self._finish(o_blhv, parts.z, call), KdaState(conv_state, delta_state)

    def step(self, x_bd: Tensor, state: KdaState, call: Call | None = None) -> tuple[Tensor, KdaState]:
        parts = self._split(self.in_proj(x_bd))
        qkv, conv_state = self.conv.step(parts.qkv, state.conv_bjc)
        with torch.autocast(x_bd.device.type, enabled=False):
            o_bhv, delta_state = kda_step(*self._heads(qkv), *self._rates(parts), state.delta_bhkv)
        return self._finish(o_bhv, parts.z, call), KdaState(conv_state, delta_state)

    def _split(self, projected: Tensor) -> _Parts:
        qkv, f, z, b = projected.split([3 * self.inner, self.gate_width, self.gate_width, self.heads], dim=-1)
        if self.f_proj is not None and self.g_proj is not None:
            f, z = self.f_proj(f), self.g_proj(z)
        return _Parts(qkv, f, z, b)

    def _scan(self, qkv_blc: Tensor, parts: _Parts) -> tuple[Tensor, Tensor]:
        """The scan's output (batch, length, heads, head_dim), and the last state."""
        # Autocast would take the scan's matmuls, which sum over the context, in half precision.
        with torch.autocast(qkv_blc.device.type, enabled=False):
            return kda_chunked(*self._heads(qkv_blc), *self._rates(parts))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k of unit length, q scaled, and v, a head each. In float32 at least."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return (
            unit_vectors(q, self.head_dim**-0.5),
            unit_vectors(k),
            v.to(torch.promote_types(v.dtype, torch.float32)),
        )

    def _rates(self, parts: _Parts) -> tuple[Tensor, Tensor]:
        """Logarithms of the decays, and writing strengths; in float32 at least: they enter exponentials."""
        wide = torch.promote_types(parts.f.dtype, torch.float32)
        f_hk = (parts.f.to(wide) + self.dt_bias.to(wide)).unflatten(-1, (self.heads, self.head_dim))
        rate_h1 = self.A_log.to(wide).exp()[:, None]
        bound = self.spec.decay_bound
        g_hk = -rate_h1 * F.softplus(f_hk) if bound is None else -bound * (rate_h1 * f_hk).sigmoid()
        return g_hk, self.spec.beta_scale * parts.b.to(wide).sigmoid()

    def _finish(self, o_hv: Tensor, z_i: Tensor, call: Call | None) -> Tensor:
        """Norm a head, gate, output projection; leading axes are free."""
        self.tell(call, "memory", o_hv.flatten(-2))
        y_i = self.norm(o_hv).flatten(-2).to(z_i.dtype) * z_i.sigmoid()
        return y_i if self.out_proj is None else self.out_proj(y_i)
