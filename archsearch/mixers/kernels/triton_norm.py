"""RMS norm (arXiv 1910.07467) of a residual stream in one pass each way.

torch's own norm writes float32 where it reads it, which the matmul after it then casts; on the way back, the
cast, the norm and the sum with the residual's gradient are three passes. Here the norm is written in the
matmul's dtype, the last layer's output is added on the way in, and the residual's gradient on the way back.
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


def rms_norm_beside(
    x_d: Tensor, weight_d: Tensor, eps: float, dtype: torch.dtype, added_d: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight over the last axis, in `dtype`; and x, to be used in place of the x given.

    added_d: of any dtype, is added to x first.
    """
    return _Norm.apply(x_d, added_d, weight_d, eps, dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_d: Tensor, added_d: Tensor | None, weight_d: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        width, adds = x_d.shape[-1], added_d is not None
        x = x_d.reshape(-1, width)
        added = added_d.reshape(-1, width) if added_d is not None else x
        total = torch.empty_like(x) if adds else x
        y, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), dtype=torch.float32)
        block = triton.next_power_of_2(width)
        with torch.cuda.device_of(x):
            _forward[(len(x),)](
                x, added, weight_d, total, y, inverse, width, eps, adds, block, num_warps=row_warps(block)
            )
        ctx.save_for_backward(total, weight_d, inverse)
        ctx.added = None if added_d is None else added_d.dtype
        return y.view(x_d.shape), total.view(x_d.shape) if adds else x_d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_d: Tensor | None, dx_d: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight_d, inverse = ctx.saved_tensors
        if dy_d is None:
            dadded_d = None if dx_d is None or ctx.added is None else dx_d.to(ctx.added)
            return dx_d, dadded_d, None, None, None
        dy = dy_d.reshape(x.shape)
        residual = None if dx_d is None else dx_d.reshape(x.shape)
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        programs = min(len(x), PROGRAMS_A_PROCESSOR * processors)
        dx, width = torch.empty_like(x), x.shape[1]
        narrows = ctx.added is not None and ctx.added != x.dtype
        dadded = torch.empty_like(x, dtype=ctx.added) if narrows else dx
        dweight = x.new_empty(programs, width, dtype=torch.float32)
        block = triton.next_power_of_2(width)
        given = x, weight_d, inverse, dy, dx if residual is None else residual
        forms = residual is not None, narrows, block
        with torch.cuda.device_of(x):
            _backward[(programs,)](
                *given, dx, dadded, dweight, len(x), width, *forms, num_warps=row_warps(block)
            )
        dadded_d = None if ctx.added is None else dadded.view(dy_d.shape)
        return dx.view(dy_d.shape), dadded_d, dweight.sum(0).to(weight_d.dtype), None, None


def row_warps(block: int) -> int:
    """Of a program that holds a row of so many numbers."""
    return min(16, max(1, block // 256))


@triton.jit
def _forward(x, added, weight, total, y, inverse, width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    there = at < width
    value = tl.load(x + start + at, mask=there, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(added + start + at, mask=there, other=0.0).to(tl.float32)
        tl.store(total + start + at, value.to(total.dtype.element_ty), mask=there)
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
    dadded,
    dweight,
    rows,
    width,
    HAS_RESIDUAL: tl.constexpr,
    NARROWS: tl.constexpr,
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
        if NARROWS:
            tl.store(dadded + start + at, found.to(dadded.dtype.element_ty), mask=there)
        start += stride
    tl.store(dweight + first.to(tl.int64) * width + at, total, mask=there)
