"""RMS norm (arXiv 1910.07467) with a SiLU gate before or after it, in one pass, for what has no gradients.

By torch's own operations it is seven launches, four of them to and from float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from archsearch.mixers.kernels.triton_norm import row_warps


def gated_rms_norm(
    x_d: Tensor, gate_d: Tensor, weight_d: Tensor, eps: float, groups: int, norm_first: bool
) -> Tensor:
    """norm(x) * SiLU(gate), or norm(x * SiLU(gate)), of the gate's dtype, over groups of the last axis."""
    x, gate = _rows(x_d), _rows(gate_d)
    y, width = torch.empty_like(gate, memory_format=torch.contiguous_format), x.shape[1] // groups
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        _gated[len(x), groups](
            *(x, gate, weight_d, y, width, x.stride(0), gate.stride(0), eps, norm_first, block),
            num_warps=row_warps(block),
        )
    return y.view(gate_d.shape)


def _rows(t: Tensor) -> Tensor:
    """(..., d) as (rows, d), each of which lies together; a part of a projection's output is not copied."""
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(-1) == 1 else t.contiguous()


@triton.jit
def _gated(
    x, gate, weight, y, width, x_stride, gate_stride, eps, NORM_FIRST: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    there = at < width
    at += tl.program_id(1) * width
    value = tl.load(x + row * x_stride + at, mask=there, other=0.0).to(tl.float32)
    share = tl.load(gate + row * gate_stride + at, mask=there, other=0.0).to(tl.float32)
    share *= tl.sigmoid(share)
    if not NORM_FIRST:
        value *= share
    value *= 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    value *= tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    if NORM_FIRST:
        value *= share
    tl.store(y + row * (tl.num_programs(1) * width) + at, value.to(y.dtype.element_ty), mask=there)
