"""Norms of blocks, heads and gates.

Shape suffixes: d the normed width; leading axes are free.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.mixers.blocks import blocks
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.kernels.limits import norm_problem
from archsearch.spec.model import NormSpec

LITTLE = 1 << 18
"""Numbers for which torch's own operations are launched and done before a function of ours is."""


def _is_step(x_d: Tensor) -> bool:
    """Whether these are tokens (batch, d) of a step, which no gradient passes."""
    return x_d.ndim == 2 and x_d.numel() <= LITTLE and not torch.is_grad_enabled()


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467), over groups of width / groups channels each.

    unit_offset: the factor is 1 + weight, and the weight starts at 0, so that weight decay pulls it to 1.
    """

    def __init__(self, width: int, eps: float, groups: int = 1, unit_offset: bool = False):
        super().__init__()
        self.eps = eps
        self.groups = groups
        self.unit_offset = unit_offset
        self.weight = nn.Parameter(torch.zeros(width) if unit_offset else torch.ones(width))
        self.kernel: Choice | None = None
        self.gate_kernel: Choice | None = None

    def beside(self, x_d: Tensor, added_d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + added, and its norm, for a block that goes on with both.

        On a GPU by one kernel; the norm then has the dtype that autocast gives to matmuls.
        """
        kernel = None if self.kernel is None else self.kernel.of(x_d)
        alone = added_d is None and not torch.is_grad_enabled()  # torch has a kernel for the norm
        if kernel is None or alone or torch.compiler.is_compiling():
            x_d = x_d if added_d is None else x_d + added_d
            return x_d, self(x_d)
        device = x_d.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_d.dtype
        y_d, x_d = kernel(x_d, self._factor(), eps=self.eps, dtype=dtype, added_d=added_d)
        return x_d, y_d

    def forward(self, x_d: Tensor) -> Tensor:
        if self.groups == 1 and (x_d.is_cuda or _is_step(x_d)):
            factor_d = self._factor()
            wide = torch.promote_types(x_d.dtype, factor_d.dtype)  # torch's one kernel takes one dtype
            y_d = F.rms_norm(x_d.to(wide), x_d.shape[-1:], factor_d.to(wide), self.eps)
            return y_d.to(x_d.dtype)
        return _RmsNorm.apply(x_d, self._factor(), self.eps, self.groups)

    def gated(self, x_d: Tensor, gate_d: Tensor, *, norm_first: bool) -> Tensor:
        """norm(x) * SiLU(gate), or norm(x * SiLU(gate)); of the gate's dtype."""
        kernel = None if self.gate_kernel is None else self.gate_kernel.of(gate_d)
        if kernel is not None and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            given = x_d, gate_d, self._factor()
            return kernel(*given, eps=self.eps, groups=self.groups, norm_first=norm_first)
        if x_d.is_cuda or (self.groups == 1 and _is_step(x_d)):
            # In float32: what rounding takes here, the gradients of Mamba-2's rates lack.
            wide = torch.promote_types(gate_d.dtype, torch.float32)
            x_d, silu = x_d.to(wide), F.silu(gate_d.to(wide))
            return (self(x_d) * silu if norm_first else self(x_d * silu)).to(gate_d.dtype)
        return _GatedRmsNorm.apply(x_d, gate_d, self._factor(), self.eps, self.groups, norm_first)

    def _factor(self) -> Tensor:
        return 1 + self.weight if self.unit_offset else self.weight


class _RmsNorm(torch.autograd.Function):
    """RMS norm block by block in cache, with half the memory passes of what autograd derives on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_d: Tensor, weight_d: Tensor, eps: float, groups: int) -> Tensor:
        wide = torch.promote_types(x_d.dtype, torch.float32)
        y_d = torch.empty_like(x_d, memory_format=torch.contiguous_format)
        x, y, weight = _grouped(x_d, groups), _grouped(y_d, groups), weight_d.to(wide).view(groups, -1)
        inverse = x.new_empty(*x.shape[:-1], 1, dtype=wide)
        for at in blocks(x):
            value = x[at].to(wide)
            inverse[at] = _inverse_rms(value, eps)
            _store(y[at], value * inverse[at], weight)
        ctx.save_for_backward(x_d, weight_d, inverse)
        return y_d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_d: Tensor) -> tuple[Tensor | None, ...]:
        x_d, weight_d, inverse = ctx.saved_tensors
        groups, wide = inverse.shape[-2], inverse.dtype
        dx_d = torch.empty_like(x_d, memory_format=torch.contiguous_format)
        x, dy, dx, weight = (
            *(_grouped(t, groups) for t in (x_d, dy_d, dx_d)),
            weight_d.to(wide).view(groups, -1),
        )
        dweight = torch.zeros_like(weight)
        for at in blocks(x):
            dvalue = _pass_norm(x[at].to(wide), dy[at].to(wide), inverse[at], weight, dweight)
            _store(dx[at], dvalue, inverse[at])
        return dx_d, dweight.flatten().to(weight_d.dtype), None, None


class _GatedRmsNorm(torch.autograd.Function):
    """RMS norm and SiLU gate block by block in cache; the inputs and 1 / rms are all that is kept."""

    @staticmethod
    def forward(
        ctx: Any, x_d: Tensor, gate_d: Tensor, weight_d: Tensor, eps: float, groups: int, norm_first: bool
    ) -> Tensor:
        wide = torch.promote_types(x_d.dtype, torch.float32)
        y_d = torch.empty_like(gate_d, memory_format=torch.contiguous_format)
        x, gate, y = (_grouped(t, groups) for t in (x_d, gate_d, y_d))
        weight = weight_d.to(wide).view(groups, -1)
        inverse = x.new_empty(*x.shape[:-1], 1, dtype=wide)
        for at in blocks(x):
            silu = F.silu(gate[at].to(wide))
            value = x[at].to(wide) if norm_first else silu * x[at]
            inverse[at] = _inverse_rms(value, eps)
            unit = value * inverse[at]
            if norm_first:
                _store(y[at], unit.mul_(weight), silu)
            else:
                _store(y[at], unit, weight)
        ctx.save_for_backward(x_d, gate_d, weight_d, inverse)
        ctx.norm_first = norm_first
        return y_d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_d: Tensor) -> tuple[Tensor | None, ...]:
        x_d, gate_d, weight_d, inverse = ctx.saved_tensors
        groups, wide = inverse.shape[-2], inverse.dtype
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x_d, gate_d)]
        x, gate, dy, dx, dgate = (_grouped(t, groups) for t in (x_d, gate_d, dy_d, *found))
        weight = weight_d.to(wide).view(groups, -1)
        dweight = torch.zeros_like(weight)
        for at in blocks(x):
            x_wide, gate_wide, dy_wide = (t[at].to(wide) for t in (x, gate, dy))
            silu = F.silu(gate_wide)
            if ctx.norm_first:
                dsilu = (x_wide * inverse[at]).mul_(weight).mul_(dy_wide)
                dvalue = _pass_norm(x_wide, dy_wide * silu, inverse[at], weight, dweight)
                _store(dx[at], dvalue, inverse[at])
            else:
                dvalue = _pass_norm(x_wide * silu, dy_wide, inverse[at], weight, dweight).mul_(inverse[at])
                _store(dx[at], dvalue, silu)
                dsilu = dvalue.mul_(x_wide)
            dgate[at] = torch.ops.aten.silu_backward(dsilu, gate_wide)
        return *found, dweight.flatten().to(weight_d.dtype), None, None, None


def _grouped(t_d: Tensor, groups: int) -> Tensor:
    """(..., d) as (b, l, ..., groups, d / groups), with ones for missing axes."""
    while t_d.ndim < 3:
        t_d = t_d[None]
    return t_d.unflatten(-1, (groups, -1))


def _store(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into = a * b, in one pass where no dtype changes."""
    if into.dtype == a.dtype:
        torch.mul(a, b, out=into)
    else:
        into.copy_(a * b)


def _inverse_rms(value: Tensor, eps: float) -> Tensor:
    """1 / rms over the last axis, which is kept."""
    square = torch.linalg.vector_norm(value, dim=-1, keepdim=True).square_()
    return square.div_(value.shape[-1]).add_(eps).rsqrt_()


def _pass_norm(value: Tensor, dy: Tensor, inverse: Tensor, weight: Tensor, dweight: Tensor) -> Tensor:
    """rms times the gradient of a norm's input; the gradient of its weight is added to `dweight`.

    With r = 1 / rms(x) and g = dy * weight: dx = r (g - x r^2 mean(g x)).
    """
    unit = value * inverse
    product = dy * unit
    dweight += product.flatten(0, -3).sum(0)
    dot = product.mul_(weight).mean(-1, keepdim=True)
    return torch.mul(dy, weight, out=product).addcmul_(unit, dot, value=-1)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps)

    def beside(self, x_d: Tensor, added_d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x + added, and its norm."""
        x_d = x_d if added_d is None else x_d + added_d
        return x_d, self(x_d)


Norm = RMSNorm | LayerNorm


def gated_norm(width: int, eps: float, kernels: Kernels, groups: int = 1) -> RMSNorm:
    """A norm to be used with a gate."""
    norm = RMSNorm(width, eps, groups)
    norm.gate_kernel = kernels.choose("gated_norm", norm_problem(width // groups), needed=False)
    return norm


def build_norm(spec: NormSpec, width: int, kernels: Kernels) -> Norm:
    """The model's norm, over `width` channels."""
    if spec.kind == "layernorm":
        return LayerNorm(width, spec.eps)
    norm = RMSNorm(width, spec.eps, unit_offset=spec.unit_offset)
    norm.kernel = kernels.choose("norm", norm_problem(width), needed=False)
    return norm
