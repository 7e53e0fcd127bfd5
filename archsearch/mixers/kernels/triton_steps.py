"""One more token of what keeps a state, in one launch each: a step is little work, and what counts is how
many kernels it is. A state is read and another one written: the old one stays valid without a copy.

Shape suffixes: b batch, c channels, k kernel width, j the convolution's earlier tokens, h heads, p channels a
head, g groups, n state size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 256
"""Of a convolution, a program."""

NUMBERS = 1024
"""Of a state, a program: few, so that there are programs enough for a GPU at one sequence."""


def conv_step(
    x_bc: Tensor, state_bjc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """A causal depthwise convolution (and SiLU) at its next token, and the inputs that the next one needs."""
    batch, channels = x_bc.shape
    x, state, weight = _rows(x_bc), state_bjc.contiguous(), weight_ck.contiguous()
    y_bc, after = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(state)
    grid = triton.cdiv(channels, CHANNELS), batch
    with torch.cuda.device_of(x):
        _conv_step[grid](
            *(x, state, weight, weight if bias_c is None else bias_c, y_bc, after),
            *(channels, x.stride(0), weight.shape[1], bias_c is not None, silu, CHANNELS),
            num_warps=4,
        )
    return y_bc, after


def ssd_step(
    x_bhp: Tensor,
    dt_bh: Tensor,
    dt_bias_h: Tensor,
    A_log_h: Tensor,
    B_bgn: Tensor,
    C_bgn: Tensor,
    D_h: Tensor,
    state_bhpn: Tensor,
    low: float,
    high: float,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence (arXiv 2405.21060) at its next token, with the skip D x, and the new state.

    dt is the projection's: its bias and softplus are added here, and `low` and `high` bound it. in_place: the
    new state is written over the old one, each number after it was read.
    """
    batch, heads, width = x_bhp.shape
    groups, states = B_bgn.shape[1:]
    x, B, C = (_rows(t.flatten(1)) for t in (x_bhp, B_bgn, C_bgn))
    dt, state = _rows(dt_bh), state_bhpn.contiguous()
    y_bhp, after = x_bhp.new_empty(x_bhp.shape), state if in_place else torch.empty_like(state)
    columns = triton.next_power_of_2(states)
    rows = max(1, min(triton.next_power_of_2(width), NUMBERS // columns))
    with torch.cuda.device_of(x):
        _ssd_step[triton.cdiv(width, rows), heads, batch](
            *(x, dt, dt_bias_h, A_log_h, B, C, D_h, state, y_bhp, after),
            *(heads, width, states, heads // groups),
            *(t.stride(0) for t in (x, dt, B, C)),
            *(low, high, rows, columns),
            num_warps=4,
        )
    return y_bhp, after


def _rows(t: Tensor) -> Tensor:
    """t (batch, ...) as it is where each row lies together, as views of a projection do; else a copy."""
    return t if t.stride(-1) == 1 else t.contiguous()


@triton.jit
def _conv_step(
    x,
    state,
    weight,
    bias,
    y,
    after,
    channels,
    stride,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < channels
    kept = row * (WIDTH - 1) * channels + at
    new = tl.load(x + row * stride + at, mask=there, other=0.0).to(tl.float32)
    total = new * tl.load(weight + at * WIDTH + WIDTH - 1, mask=there, other=0.0).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        value = tl.load(state + kept + j * channels, mask=there, other=0.0).to(tl.float32)
        total += value * tl.load(weight + at * WIDTH + j, mask=there, other=0.0).to(tl.float32)
        if j > 0:
            tl.store(after + kept + (j - 1) * channels, value.to(after.dtype.element_ty), mask=there)
    if WIDTH > 1:
        tl.store(after + kept + (WIDTH - 2) * channels, new.to(after.dtype.element_ty), mask=there)
    if HAS_BIAS:
        total += tl.load(bias + at, mask=there, other=0.0).to(tl.float32)
    if SILU:
        total *= tl.sigmoid(total)
    tl.store(y + row * channels + at, total.to(y.dtype.element_ty), mask=there)


@triton.jit
def _softplus(value):
    """log(1 + exp(value)), to the last digits where it is small too: (1 + u) - 1 tells what 1 + u rounded."""
    u = tl.exp(tl.minimum(value, 20.0))
    rounded = 1 + u
    lost = tl.where(rounded == 1, 1.0, rounded - 1)
    found = tl.where(rounded == 1, u, tl.log(rounded) * (u / lost))
    return tl.where(value > 20.0, value, found)


@triton.jit
def _ssd_step(
    x,
    dt,
    dt_bias,
    A_log,
    B,
    C,
    D,
    state,
    y,
    after,
    heads,
    width,
    states,
    heads_a_group,
    x_stride,
    dt_stride,
    B_stride,
    C_stride,
    low,
    high,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    p, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    has_p, has_n = p < width, n < states
    size = tl.load(dt + row * dt_stride + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    size = tl.minimum(tl.maximum(_softplus(size), low), high)
    decay = tl.exp(-tl.exp(tl.load(A_log + head).to(tl.float32)) * size)
    value = tl.load(x + row * x_stride + head * width + p, mask=has_p, other=0.0).to(tl.float32)
    shared = (head // heads_a_group) * states + n
    key = tl.load(B + row * B_stride + shared, mask=has_n, other=0.0).to(tl.float32)
    query = tl.load(C + row * C_stride + shared, mask=has_n, other=0.0).to(tl.float32)
    place = ((row * heads + head) * width + p[:, None]) * states + n[None, :]
    there = has_p[:, None] & has_n[None, :]
    held = tl.load(state + place, mask=there, other=0.0).to(tl.float32)
    held = held * decay + (size * value)[:, None] * key[None, :]
    tl.store(after + place, held.to(after.dtype.element_ty), mask=there)
    found = tl.sum(held * query[None, :], 1) + tl.load(D + head).to(tl.float32) * value
    tl.store(y + (row * heads + head) * width + p, found.to(y.dtype.element_ty), mask=has_p)
