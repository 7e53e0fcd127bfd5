"""Mamba-2.

Shape suffixes: b batch, l length, d d_model, i inner width, c conv channels, h heads, p head_dim, g groups,
n state size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.kernels.limits import mamba2_problem, ssd_problem
from archsearch.mixers.norms import RMSNorm, gated_norm
from archsearch.mixers.short_conv import ShortConv
from archsearch.mixers.ssd import ssd_chunked, ssd_step
from archsearch.mixers.step_sizes import draw_step_bias
from archsearch.spec.layers import Mamba2


class Mamba2State(NamedTuple):
    """The convolution's last inputs (batch, d_conv - 1, channels); the state (batch, heads, head_dim, n)."""

    conv_bkc: Tensor
    ssm_bhpn: Tensor


class Mamba2Mixer(Mixer):
    """`mamba2`. The input projection gives z, x, B, C, dt in the order of the mamba_ssm package."""

    def __init__(self, spec: Mamba2, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        d_model = around.d_model
        self.inner = spec.inner_width(d_model)
        self.heads, self.head_dim = spec.head_count(d_model), spec.head_dim
        self.groups, self.d_state = spec.groups, spec.d_state
        self.multiplier: Tensor | None
        self.register_buffer("multiplier", _multiplier(spec, d_model), persistent=False)
        self.in_proj = nn.Linear(spec.input_width(d_model), spec.in_width(d_model), bias=spec.bias)
        self.conv = ShortConv(
            spec.conv_width(d_model), spec.d_conv, bias=spec.conv_bias, silu=True, kernels=around.kernels
        )
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm: RMSNorm | None = None
        if spec.gated_norm != "none":
            eps, groups = spec.norm_eps or around.eps, spec.norm_groups or spec.groups
            self.norm = gated_norm(self.inner, eps, around.kernels, groups)
        self.norm_first = spec.gated_norm == "before"
        self.out_proj = nn.Linear(self.inner, d_model, bias=spec.bias) if project else None
        self._choose_kernels(around)

    def _choose_kernels(self, around: Surroundings) -> None:
        problem = ssd_problem(self.head_dim, self.d_state)
        self.scan_kernel = around.kernels.choose("ssd", problem)
        self.step_kernel = around.kernels.choose("ssd_step")
        if self.norm is not None and self.norm.groups != self.groups:
            problem = problem or f"it norms {self.norm.groups} groups, and {self.groups} share B and C"
        problem = problem or mamba2_problem(
            self.inner, self.groups, self.d_state, self.heads, d_conv=self.spec.d_conv
        )
        self.layer_kernel = around.kernels.choose("mamba2", problem, needed=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        self.conv.reset_parameters(generator)
        spec = self.spec
        with torch.no_grad():
            self.D.fill_(1.0)
            draw_step_bias(self.dt_bias, spec, generator)
            self.A_log.uniform_(*spec.A_init, generator=generator).log_()
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        projected = self._projected(x_bld)
        kernel = self.layer_kernel.of(projected)
        if kernel is not None and "memory" not in self.telling and (call is None or call.mask is None):
            return self._whole(kernel, projected)
        z, conv_in, dt = self._split(projected)
        conv_out = masked(self.conv(masked(conv_in, call)), call)
        return self._finish(self._scan(conv_out, dt, wants_state=False)[0], z, call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, Mamba2State]:
        z, conv_in, dt = self._split(self._projected(x_bld))
        conv_out, conv_state = self.conv.prefill(masked(conv_in, call))
        y, ssm_state = self._scan(masked(conv_out, call), dt)
        return self._finish(y, z, call), Mamba2State(conv_state, ssm_state)

    def step(self, x_bd: Tensor, state: Mamba2State, call: Call | None = None) -> tuple[Tensor, Mamba2State]:
        z_bi, conv_in, dt_bh = self._split(self._projected(x_bd))
        conv_out, conv_state = self.conv.step(conv_in, state.conv_bkc)
        x, B, C = self._heads(conv_out)
        kernel = None if torch.is_grad_enabled() else self.step_kernel.of(x)
        if kernel is not None:
            rates, in_place = (dt_bh, self.dt_bias, self.A_log), call is not None and call.donated
            forms = {"dt_limit": self.spec.dt_limit, "in_place": in_place}
            y_bhp, ssm = kernel(x, *rates, B, C, self.D, state.ssm_bhpn, **forms)
        else:
            wide = state.ssm_bhpn.dtype
            y_bhp, ssm = ssd_step(
                x.to(wide), self._dt(dt_bh), self._A(), B.to(wide), C.to(wide), state.ssm_bhpn
            )
            y_bhp = y_bhp.to(x.dtype) + self.D.to(x.dtype)[:, None] * x
        return self._finish(y_bhp.flatten(-2), z_bi, call), Mamba2State(conv_state, ssm)

    def _scan(self, conv_blc: Tensor, dt_blh: Tensor, wants_state: bool = True) -> tuple[Tensor, Tensor]:
        """Convolved x, B, C -> the scan's output with the skip D x, and the last state if it is wanted."""
        # Under autocast the native convolution returns float32, and dt still has the projection's dtype.
        kernel = self.scan_kernel.of(dt_blh)
        x, B, C = self._heads(conv_blc if kernel is None else conv_blc.to(dt_blh.dtype))
        if kernel is not None:
            y, state = kernel(x, self._dt(dt_blh), self._A(), B, C, self.D)
            return y.flatten(-2), state
        wide = torch.promote_types(x.dtype, torch.float32)
        # Autocast would take the scan's matmuls, which sum over the context, in half precision.
        with torch.autocast(x.device.type, enabled=False):
            given = (x.to(wide), self._dt(dt_blh), self._A(), B.to(wide), C.to(wide), self.D.to(wide))
            y, state = ssd_chunked(*given, wants_state=wants_state)
        return y.flatten(-2).to(x.dtype), state

    def _finish(self, y_bli: Tensor, z_bli: Tensor, call: Call | None) -> Tensor:
        """Gate, norm, output projection."""
        self.tell(call, "memory", y_bli)
        if self.norm is None:
            y_bli = y_bli * F.silu(z_bli)
        else:
            y_bli = self.norm.gated(y_bli, z_bli, norm_first=self.norm_first)
        return y_bli if self.out_proj is None else self.out_proj(y_bli)

    def _whole(self, kernel: Callable[..., Tensor], projected_blw: Tensor) -> Tensor:
        """Everything after the input projection, in one kernel call."""
        return kernel(
            projected_blw,
            conv=(self.conv.weight, self.conv.bias),
            dt_bias_h=self.dt_bias,
            A_h=self._A(),
            D_h=self.D,
            norm=(None, 0.0) if self.norm is None else (self.norm.weight, self.norm.eps),
            out=(None, None) if self.out_proj is None else (self.out_proj.weight, self.out_proj.bias),
            head_dim=self.head_dim,
            groups=self.groups,
            norm_first=self.norm_first,
            dt_limit=self.spec.dt_limit,
        )

    def _projected(self, x: Tensor) -> Tensor:
        """z, x, B, C, dt side by side."""
        projected = self.in_proj(x)
        return projected if self.multiplier is None else projected * self.multiplier.to(projected.dtype)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """z; x, B and C together; dt."""
        conv = self.inner + 2 * self.groups * self.d_state
        return projected.split([self.inner, conv, self.heads], dim=-1)

    def _heads(self, conv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bc = self.groups * self.d_state
        x, B, C = conv.split([self.inner, bc, bc], dim=-1)
        return (
            x.unflatten(-1, (self.heads, self.head_dim)),
            B.unflatten(-1, (self.groups, self.d_state)),
            C.unflatten(-1, (self.groups, self.d_state)),
        )

    def _dt(self, dt: Tensor) -> Tensor:
        """Step sizes, in float32 at least: they enter exponentials and sums over the context."""
        wide = torch.promote_types(dt.dtype, torch.float32)
        step = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        low, high = self.spec.dt_limit
        return step if low == 0 and math.isinf(high) else step.clamp(low, high)

    def _A(self) -> Tensor:
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return -self.A_log.to(wide).exp()


def _multiplier(spec: Mamba2, d_model: int) -> Tensor | None:
    """The constant factor of each output of the input projection, in float64."""
    if spec.multipliers is None:
        return None
    factors = torch.tensor(spec.multipliers, dtype=torch.float64)
    widths = spec.segments(d_model)
    # The sum is said, so that it works on the meta device too.
    return factors.repeat_interleave(torch.tensor(widths), output_size=sum(widths))
