"""SwiGLU (arXiv 2002.05202) in one pass each way.

torch's own form keeps SiLU(gate) beside gate and values, and joins the gradients of the two halves by a copy.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024
"""Numbers of a row at a time."""


def swiglu(up_u: Tensor) -> Tensor:
    """SiLU(gate) * value of the two halves of the last axis: (..., 2 f) -> (..., f)."""
    return _SwiGlu.apply(up_u)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, up_u: Tensor) -> Tensor:
        up = up_u.reshape(-1, up_u.shape[-1]).contiguous()
        width = up.shape[1] // 2
        y = up.new_empty(len(up), width)
        with torch.cuda.device_of(up):
            _forward[(len(up), triton.cdiv(width, BLOCK))](up, y, width, BLOCK, num_warps=4)
        ctx.save_for_backward(up)
        ctx.shape = up_u.shape
        return y.view(*up_u.shape[:-1], width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_f: Tensor) -> Tensor:
        (up,) = ctx.saved_tensors
        width = up.shape[1] // 2
        dy, dup = dy_f.reshape(-1, width).contiguous(), torch.empty_like(up)
        with torch.cuda.device_of(up):
            _backward[(len(up), triton.cdiv(width, BLOCK))](up, dy, dup, width, BLOCK, num_warps=4)
        return dup.view(ctx.shape)


@triton.jit
def _forward(up, y, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    gate = tl.load(up + row * 2 * width + at, mask=there, other=0.0).to(tl.float32)
    value = tl.load(up + row * 2 * width + width + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gate * tl.sigmoid(gate) * value).to(y.dtype.element_ty), mask=there)


@triton.jit
def _backward(up, dy, dup, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < width
    gate = tl.load(up + row * 2 * width + at, mask=there, other=0.0).to(tl.float32)
    value = tl.load(up + row * 2 * width + width + at, mask=there, other=0.0).to(tl.float32)
    given = tl.load(dy + row * width + at, mask=there, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = given * value * share * (1 + gate * (1 - share))
    tl.store(dup + row * 2 * width + at, dgate.to(dup.dtype.element_ty), mask=there)
    dvalue = given * gate * share
    tl.store(dup + row * 2 * width + width + at, dvalue.to(dup.dtype.element_ty), mask=there)
