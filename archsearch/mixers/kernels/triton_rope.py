"""Rotary positions in one pass each way.

torch's own form is a dozen passes over strided halves of the heads, and rounds cosines, sines and products to
the tensor's dtype; here they are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PAIRS_A_PROGRAM = 2048
"""Pairs of channels that a program turns at most: of as many heads of one token."""


def rotate(x_bhle: Tensor, cos_lf: Tensor, sin_lf: Tensor, interleaved: bool) -> Tensor:
    """Each pair (a, b) of channels becomes (a cos - b sin, b cos + a sin); channels after 2 f of them pass.

    Pairs are a channel of each half of the rotated ones, or neighbours where interleaved. cos, sin: float32.
    Heads of the result lie beside each other in memory, token by token.
    """
    return _Rotate.apply(x_bhle, cos_lf, sin_lf, interleaved)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bhle: Tensor, cos_lf: Tensor, sin_lf: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_lf, sin_lf)
        ctx.interleaved = interleaved
        return _rotated(x_bhle, cos_lf, sin_lf, interleaved, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bhle: Tensor) -> tuple[Tensor | None, ...]:
        cos_lf, sin_lf = ctx.saved_tensors
        return _rotated(dy_bhle, cos_lf, sin_lf, ctx.interleaved, back=True), None, None, None


def _rotated(x_bhle: Tensor, cos_lf: Tensor, sin_lf: Tensor, interleaved: bool, *, back: bool) -> Tensor:
    x_bhle = x_bhle if x_bhle.stride(-1) == 1 else x_bhle.contiguous()
    batch, heads, length, width = x_bhle.shape
    y_bhle = x_bhle.new_empty(batch, length, heads, width).transpose(1, 2)
    pairs = cos_lf.shape[1]
    block = triton.next_power_of_2(max(pairs, 1))
    rest = width - 2 * pairs
    rows = min(triton.next_power_of_2(heads), max(1, PAIRS_A_PROGRAM // block))
    with torch.cuda.device_of(x_bhle):
        _turn[(batch * length, triton.cdiv(heads, rows))](
            *(x_bhle, y_bhle, cos_lf.contiguous(), sin_lf.contiguous()),
            *(length, heads, pairs, rest),
            *(*x_bhle.stride()[:3], *y_bhle.stride()[:3]),
            *(interleaved, back, rows, block, triton.next_power_of_2(max(rest, 1))),
            num_warps=4,
        )
    return y_bhle


@triton.jit
def _turn(
    x,
    y,
    cos,
    sin,
    length,
    heads,
    pairs,
    rest,
    x_b,
    x_h,
    x_l,
    y_b,
    y_h,
    y_l,
    INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0)
    sequence, place = (token // length).to(tl.int64), (token % length).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, BLOCK)
    own, real = head[:, None] < heads, pair[None, :] < pairs
    c = tl.load(cos + place * pairs + pair, mask=pair < pairs, other=0.0)[None, :]
    s = tl.load(sin + place * pairs + pair, mask=pair < pairs, other=0.0)[None, :]
    if BACK:
        s = -s
    if INTERLEAVED:
        first, second = 2 * pair[None, :], 2 * pair[None, :] + 1
    else:
        first, second = pair[None, :], pair[None, :] + pairs
    source = x + sequence * x_b + place * x_l + head[:, None] * x_h
    target = y + sequence * y_b + place * y_l + head[:, None] * y_h
    a = tl.load(source + first, mask=own & real, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=own & real, other=0.0).to(tl.float32)
    tl.store(target + first, (a * c - b * s).to(y.dtype.element_ty), mask=own & real)
    tl.store(target + second, (b * c + a * s).to(y.dtype.element_ty), mask=own & real)
    if rest > 0:
        after = tl.arange(0, REST)[None, :]
        there = own & (after < rest)
        passed = tl.load(source + 2 * pairs + after, mask=there, other=0.0)
        tl.store(target + 2 * pairs + after, passed, mask=there)
