"""RMS norm (arXiv 1910.07467) of a residual stream in one pass each way.

torch's own norm writes float32 where it reads it, which the matmul after it then casts; on the way back, the
cast, the norm and the sum with the residual's gradient are three passes. Here the norm is written in the
matmul's dtype, and its gradient is added to the residual's as it is computed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS_A_PROCESSOR = 8
"""Of the backward pass: so many that the memory is kept busy; each has a sum of the weight's gradient."""


def rms_norm_beside(x_d: Tensor, weight_d: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight over the last axis, in `dtype`; and x, to be used in place of the x given."""
    return _Norm.apply(x_d, weight_d, eps, dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_d: Tensor, weight_d: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        width = x_d.shape[-1]
        x = x_d.reshape(-1, width)
        y, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), dtype=torch.float32)
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _forward[(len(x),)](x, weight_d, y, inverse, width, eps, block, num_warps=_warps(block))
        ctx.save_for_backward(x, weight_d, inverse)
        return y.view(x_d.shape), x_d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_d: Tensor | None, dx_d: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight_d, inverse = ctx.saved_tensors
        if dy_d is None:
            return dx_d, None, None, None
        dy = dy_d.reshape(x.shape)
        residual = None if dx_d is None else dx_d.reshape(x.shape)
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        programs = min(len(x), PROGRAMS_A_PROCESSOR * processors)
        dx, width = torch.empty_like(x), x.shape[1]
        dweight = x.new_empty(programs, width, dtype=torch.float32)
        block = triton.next_power_of_2(width)
        given = x, weight_d, inverse, dy, dx if residual is None else residual
        with torch.cuda.device_of(x):
            _backward[(programs,)](
                *given, dx, dweight, len(x), width, residual is not None, block, num_warps=_warps(block)
            )
        return dx.view(dy_d.shape), dweight.sum(0).to(weight_d.dtype), None, None


def _warps(block: int) -> int:
    return min(16, max(1, block // 256))


@triton.jit
def _forward(x, weight, y, inverse, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + start + at, mask=there, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    factor = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + start + at, (value * scale * factor).to(y.dtype.element_ty), mask=there)
    tl.store(inverse + row, scale)


@triton.jit
def _backward(
    x,
    weight,
    inverse,
    dy,
    residual,
    dx,
    dweight,
    rows,
    width,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0)
    programs = tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    there = at < width
    factor = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    start = first.to(tl.int64) * width
    stride = programs.to(tl.int64) * width
    for row in range(first, rows, programs):
        scale = tl.load(inverse + row)
        unit = tl.load(x + start + at, mask=there, other=0.0).to(tl.float32) * scale
        given = tl.load(dy + start + at, mask=there, other=0.0).to(tl.float32)
        total += given * unit
        given *= factor
        found = (given - unit * (tl.sum(given * unit, 0) / width)) * scale
        if HAS_RESIDUAL:
            found += tl.load(residual + start + at, mask=there, other=0.0).to(tl.float32)
        tl.store(dx + start + at, found.to(dx.dtype.element_ty), mask=there)
        start += stride
    tl.store(dweight + first.to(tl.int64) * width + at, total, mask=there)
