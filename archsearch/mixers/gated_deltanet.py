"""Gated DeltaNet.

Shape suffixes: b batch, l length, d d_model, c conv channels, i inner width, g key heads, h value heads,
k key_dim, v value_dim; j the convolution's earlier tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.delta_rule import gated_delta_chunked, gated_delta_step, unit_vectors
from archsearch.mixers.norms import gated_norm
from archsearch.mixers.short_conv import ShortConv
from archsearch.mixers.step_sizes import draw_step_bias
from archsearch.spec.layers.deltanet import GatedDeltaNet


class GatedDeltaNetState(NamedTuple):
    """The convolution's last inputs (batch, d_conv - 1, channels); the state (batch, heads, key, value)."""

    conv_bjc: Tensor
    delta_bhkv: Tensor


class GatedDeltaNetMixer(Mixer):
    """`gated_deltanet` (arXiv 2412.06464).

    The input projection gives q, k, v, z, b, a: rows in the order of Qwen3.5's in_proj_qkv, in_proj_z,
    in_proj_b and in_proj_a, and of OLMo Hybrid's q_proj, k_proj, v_proj, g_proj, b_proj and a_proj.
    (Qwen3-Next's in_proj_qkvz and in_proj_ba hold the same rows, interleaved by key head.) Value head h reads
    the q and k of key head h // (value_heads / key_heads), as in all three; `norm` is the same for all heads.
    """

    def __init__(self, spec: GatedDeltaNet, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        assert spec.key_heads is not None, "resolve the spec first"
        assert spec.value_heads is not None
        d_model = around.d_model
        self.key_dim, self.value_dim = spec.key_dim, spec.value_dim
        self.key_width, self.heads = spec.key_heads * spec.key_dim, spec.value_heads
        self.inner, self.conv_width = spec.inner_width(d_model), spec.conv_width(d_model)
        self.in_proj = nn.Linear(spec.input_width(d_model), spec.in_width(d_model), bias=False)
        self.conv = ShortConv(self.conv_width, spec.d_conv, bias=False, silu=True, kernels=around.kernels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.norm = gated_norm(spec.value_dim, spec.norm_eps or around.eps, around.kernels)
        self.out_proj = nn.Linear(self.inner, d_model, bias=False) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        self.conv.reset_parameters(generator)
        spec = self.spec
        with torch.no_grad():
            draw_step_bias(self.dt_bias, spec, generator)
            slow, fast = spec.A_init
            # From the upper end down: a rate of exactly 0 has no logarithm.
            self.A_log.copy_((fast - (fast - slow) * torch.rand(self.heads, generator=generator)).log())
            self.norm.weight.fill_(1.0)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        qkv, z, b, a = self._split(self.in_proj(x_bld))
        qkv = masked(self.conv(masked(qkv, call)), call)
        return self._finish(self._scan(qkv, b, a)[0], z, call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, GatedDeltaNetState]:
        qkv, z, b, a = self._split(self.in_proj(x_bld))
        qkv, conv_state = self.conv.prefill(masked(qkv, call))
        o_blhv, delta_state = self._scan(masked(qkv, call), b, a)
        return self._finish(o_blhv, z, call), GatedDeltaNetState(conv_state, delta_state)

    def step(
        self, x_bd: Tensor, state: GatedDeltaNetState, call: Call | None = None
    ) -> tuple[Tensor, GatedDeltaNetState]:
        qkv, z, b, a = self._split(self.in_proj(x_bd))
        qkv, conv_state = self.conv.step(qkv, state.conv_bjc)
        with torch.autocast(x_bd.device.type, enabled=False):
            o_bhv, delta_state = gated_delta_step(*self._heads(qkv), *self._rates(b, a), state.delta_bhkv)
        return self._finish(o_bhv, z, call), GatedDeltaNetState(conv_state, delta_state)

    def _scan(self, qkv_blc: Tensor, b_blh: Tensor, a_blh: Tensor) -> tuple[Tensor, Tensor]:
        """The scan's output (batch, length, value heads, value_dim), and the last state."""
        # Autocast would take the scan's matmuls, which sum over the context, in half precision.
        with torch.autocast(qkv_blc.device.type, enabled=False):
            return gated_delta_chunked(*self._heads(qkv_blc), *self._rates(b_blh, a_blh))

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """q, k and v together; z, if there is a gate; b; a."""
        widths = [self.conv_width, self.inner if self.spec.gate else 0, self.heads, self.heads]
        qkv, z, b, a = projected.split(widths, dim=-1)
        return qkv, z if self.spec.gate else None, b, a

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k a key head, of unit length and q scaled; v a value head. In float32 at least."""
        q, k, v = qkv.split([self.key_width, self.key_width, self.inner], dim=-1)
        return (
            unit_vectors(q.unflatten(-1, (-1, self.key_dim)), self.key_dim**-0.5),
            unit_vectors(k.unflatten(-1, (-1, self.key_dim))),
            v.unflatten(-1, (-1, self.value_dim)).to(torch.promote_types(v.dtype, torch.float32)),
        )

    def _rates(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the decays, and writing strengths; in float32 at least: they enter exponentials."""
        wide = torch.promote_types(a.dtype, torch.float32)
        g = -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias.to(wide))
        return g, self.spec.beta_scale * b.to(wide).sigmoid()

    def _finish(self, o_hv: Tensor, z_i: Tensor | None, call: Call | None) -> Tensor:
        """Norm a head, gate, output projection; leading axes are free."""
        self.tell(call, "memory", o_hv.flatten(-2))
        if z_i is None:
            y_i = self.norm(o_hv).flatten(-2).to(self.in_proj.weight.dtype)
        else:
            z_hv = z_i.unflatten(-1, (self.heads, self.value_dim))
            y_i = self.norm.gated(o_hv, z_hv, norm_first=True).flatten(-2)
        return y_i if self.out_proj is None else self.out_proj(y_i)
