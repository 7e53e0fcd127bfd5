"""Norms of blocks, heads and gates.

Shape suffixes: d the normed width; leading axes are free.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.spec.model import NormSpec


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

    def forward(self, x_d: Tensor) -> Tensor:
        weight_d = 1 + self.weight if self.unit_offset else self.weight
        if x_d.is_cuda and self.groups == 1:
            return F.rms_norm(x_d, x_d.shape[-1:], weight_d, self.eps)
        return _RmsNorm.apply(x_d, weight_d, self.eps, self.groups)


class _RmsNorm(torch.autograd.Function):
    """RMS norm with half the memory passes of what autograd derives on a CPU.

    With r = 1 / rms(x) and g = dy * weight: dx = r (g - x r^2 mean(g x)).
    """

    @staticmethod
    def forward(ctx: Any, x_d: Tensor, weight_d: Tensor, eps: float, groups: int) -> Tensor:
        wide = x_d.to(torch.promote_types(x_d.dtype, torch.float32)).unflatten(-1, (groups, -1))
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(wide.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_d, weight_d, inverse)
        return (wide * inverse).flatten(-2).mul_(weight_d).to(x_d.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_d: Tensor) -> tuple[Tensor | None, ...]:
        x_d, weight_d, inverse = ctx.saved_tensors
        groups = inverse.shape[-2]
        unit = x_d.to(inverse.dtype).unflatten(-1, (groups, -1)) * inverse
        dy = dy_d.to(inverse.dtype).unflatten(-1, (groups, -1))
        dweight_d = (dy * unit).reshape(-1, x_d.shape[-1]).sum(0)
        g = dy * weight_d.view(groups, -1)
        dot = (g * unit).mean(-1, keepdim=True)
        dx = torch.addcmul(g, unit, dot, value=-1).mul_(inverse)
        return dx.flatten(-2).to(x_d.dtype), dweight_d.to(weight_d.dtype), None, None


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps)


def build_norm(spec: NormSpec, width: int) -> nn.Module:
    """The model's norm, over `width` channels."""
    if spec.kind == "layernorm":
        return LayerNorm(width, spec.eps)
    return RMSNorm(width, spec.eps, unit_offset=spec.unit_offset)
