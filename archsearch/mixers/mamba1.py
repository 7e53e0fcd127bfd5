"""Mamba-1 (arXiv 2312.00752).

Shape suffixes: b batch, l length, d d_model, i inner width, r dt_rank, n state size, h heads, p channels a
head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.kernels.limits import selective_scan_problem
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.selective_scan import selective_scan, selective_scan_step
from archsearch.mixers.short_conv import ShortConv
from archsearch.mixers.step_sizes import draw_step_bias
from archsearch.spec.layers import Mamba1


class Mamba1State(NamedTuple):
    """The convolution's last inputs (batch, d_conv - 1, inner); the state (batch, inner, n)."""

    conv_bki: Tensor
    ssm_bin: Tensor


class Mamba1Mixer(Mixer):
    """`mamba1`, with the parameters of `Mamba` in the mamba_ssm package, which transformers keeps.

    in_proj gives x, z; x_proj gives dt (by its rank), B, C. Their `conv1d` (i, 1, k) is `conv` (i, k) here;
    dt_norm, B_norm and C_norm are the dt_layernorm, b_layernorm and c_layernorm of transformers' Jamba.
    With heads, x_proj.weight, dt_proj.weight, dt_proj.bias, A_log and D are Zamba's x_proj_weight,
    dt_proj_weight, dt_proj_bias, A_log and D with the axis of heads merged into the next one; the rows of
    Zamba's in_proj are x and z in turns: x's first, z's first, x's second, and so on.
    """

    def __init__(self, spec: Mamba1, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        self.inner, self.d_state = spec.inner_width(around.d_model), spec.d_state
        self.heads = spec.heads
        self.rank = spec.parameter_width() - 2 * spec.d_state
        problem = selective_scan_problem(spec.d_state)
        self.scan_kernel = around.kernels.choose("selective_scan", problem)
        self.step_kernel = around.kernels.choose("selective_scan_step", problem)
        self.in_proj = nn.Linear(spec.input_width(around.d_model), 2 * self.inner, bias=spec.bias)
        self.conv = ShortConv(self.inner, spec.d_conv, bias=spec.conv_bias, silu=True, kernels=around.kernels)
        self.x_proj = nn.Linear(self.inner // self.heads, self.heads * spec.parameter_width(), bias=False)
        eps = spec.inner_norm_eps or around.eps
        self.dt_norm, self.B_norm, self.C_norm = (
            _inner_norm(spec, width, eps) for width in (self.rank, self.d_state, self.d_state)
        )
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.empty(self.inner, self.d_state))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, around.d_model, bias=spec.bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        for linear in (self.in_proj, self.x_proj, self.dt_proj):
            init_linear(linear, generator)
        self.conv.reset_parameters(generator)
        spec = self.spec
        with torch.no_grad():
            if spec.dt_init == "constant":
                self.dt_proj.weight.fill_(self.rank**-0.5)
            draw_step_bias(self.dt_proj.bias, spec, generator)
            # S4D-real (arXiv 2206.11893): decay rates 1, 2, ..., n in every channel.
            self.A_log.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_log))
            self.D.fill_(1.0)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        x, z = self.in_proj(x_bld).chunk(2, dim=-1)
        u = masked(self.conv(masked(x, call)), call)
        return self._out(self._gated_scan(u, z, call)[0])

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, Mamba1State]:
        x, z = self.in_proj(x_bld).chunk(2, dim=-1)
        u, conv_state = self.conv.prefill(masked(x, call))
        y, ssm_state = self._gated_scan(masked(u, call), z, call)
        return self._out(y), Mamba1State(conv_state, ssm_state)

    def step(self, x_bd: Tensor, state: Mamba1State, call: Call | None = None) -> tuple[Tensor, Mamba1State]:
        x, z = self.in_proj(x_bd).chunk(2, dim=-1)
        u, conv_state = self.conv.step(x, state.conv_bki)
        dt, B, C = self._chosen(u)
        kernel = None if torch.is_grad_enabled() else self.step_kernel.of(u)
        if kernel is not None:
            y, ssm = kernel(u, self._dt(dt), self._A(), B, C, self.D, state.ssm_bin)
        else:
            y, ssm = self._each_head(selective_scan_step, u, dt, B, C, state.ssm_bin)
            y = y.to(u.dtype) + self.D.to(u.dtype) * u
        return self._out(self._gated(y, z, call)), Mamba1State(conv_state, ssm)

    def _gated_scan(self, u_bli: Tensor, z_bli: Tensor, call: Call | None) -> tuple[Tensor, Tensor]:
        """The convolved input -> the scan's output with the skip D u, gated; and the last state."""
        dt, B, C = self._chosen(u_bli)
        kernel = self.scan_kernel.of(u_bli)
        if kernel is None:
            # Autocast would take the scan's matmuls in half precision.
            with torch.autocast(u_bli.device.type, enabled=False):
                y, state = self._each_head(selective_scan, u_bli, dt, B, C)
            y = y.to(u_bli.dtype) + self.D.to(u_bli.dtype) * u_bli
            return self._gated(y, z_bli, call), state
        given = u_bli, dt, self._A(), B, C, self.D, self.dt_proj.bias
        if "memory" not in self.telling:
            return kernel(*given, z_bli=z_bli)  # what is gated there is rounded once, after the gate
        y, state = kernel(*given)
        return self._gated(y, z_bli, call), state

    def _chosen(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each token chooses: step sizes (..., i), still without bias and softplus; B, C (..., h, n)."""
        chosen = _linear_a_head(u.unflatten(-1, (self.heads, -1)), self.x_proj.weight)
        dt, B, C = chosen.split([self.rank, self.d_state, self.d_state], dim=-1)
        dt = _linear_a_head(self.dt_norm(dt), self.dt_proj.weight).flatten(-2)
        return dt, self.B_norm(B), self.C_norm(C)

    def _each_head(
        self,
        scan: Callable[..., tuple[Tensor, Tensor]],
        u: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What a scan, or a step of one, gives for the channels of each head; in float32 at least."""
        wide = torch.promote_types(u.dtype, torch.float32)
        heads = [
            scan(*of_head)
            for of_head in zip(
                u.to(wide).chunk(self.heads, -1),
                self._dt(dt).chunk(self.heads, -1),
                self._A().chunk(self.heads),
                B.to(wide).unbind(-2),
                C.to(wide).unbind(-2),
                *(s.chunk(self.heads, 1) for s in state),
                strict=True,
            )
        ]
        if len(heads) == 1:
            return heads[0]
        return torch.cat([y for y, _ in heads], -1), torch.cat([s for _, s in heads], 1)

    def _gated(self, y_bli: Tensor, z_bli: Tensor, call: Call | None) -> Tensor:
        self.tell(call, "memory", y_bli)
        return y_bli * F.silu(z_bli.to(y_bli.dtype))

    def _out(self, y_bli: Tensor) -> Tensor:
        return y_bli if self.out_proj is None else self.out_proj(y_bli)

    def _dt(self, dt: Tensor) -> Tensor:
        """Step sizes, in float32 at least: they enter exponentials and sums over the context."""
        wide = torch.promote_types(dt.dtype, torch.float32)
        return F.softplus(dt.to(wide) + self.dt_proj.bias.to(wide))

    def _A(self) -> Tensor:
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return -self.A_log.to(wide).exp()


def _linear_a_head(x_hp: Tensor, weight: Tensor) -> Tensor:
    """Each head by rows of its own, which the weight holds one head after another; leading axes are free."""
    if x_hp.shape[-2] == 1:
        return F.linear(x_hp, weight)
    return torch.einsum("...hp,hcp->...hc", x_hp, weight.unflatten(0, (x_hp.shape[-2], -1)))


def _inner_norm(spec: Mamba1, width: int, eps: float) -> nn.Module:
    """The norm of dt, B or C."""
    if spec.inner_norm == "none":
        return nn.Identity()
    if spec.inner_norm == "rms":
        return nn.RMSNorm(width, eps=eps, elementwise_affine=False)
    return RMSNorm(width, eps)
