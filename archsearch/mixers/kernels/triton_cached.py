"""One token's attention to a cache whose place and length are known to the GPU alone, so that a recorded step
may be replayed as the cache grows and moves.

The tokens are split among programs, which each leave a weighted sum of values and the sum of its weights
("Flash-Decoding", Dao et al. 2023); a second kernel joins them.

Shape suffixes: b batch, h query heads, g key/value heads, e channels of keys, f of values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS_AND_STAGES = {2: (64, 3), 4: (32, 2)}
"""Of a cache at a time, and how many such loads are under way, by bytes a number: shared memory has room."""

PROGRAMS_A_PROCESSOR, MOST_PARTS = 2, 64
"""What a cache is split for, and into how many parts at most."""


def attend_in_place(
    q_bhe: Tensor,
    k_bge: Tensor,
    v_bgf: Tensor,
    place_5: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over a cache's tokens and the one given, which is written after them: (b, h, f).

    place: int64, the addresses of keys and values (b, g, capacity, channels), of the dtype of those given;
    their capacity; the tokens that fill them; the first that is seen.
    """
    (batch, heads, width), (groups, depth) = q_bhe.shape, v_bgf.shape[1:]
    q, k, v = q_bhe.contiguous(), k_bge.contiguous(), v_bgf.contiguous()
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    wanted = triton.cdiv(PROGRAMS_A_PROCESSOR * processors, batch * groups)
    parts = min(MOST_PARTS, triton.next_power_of_2(wanted))
    summed = q.new_empty(batch * heads, parts, depth, dtype=torch.float32)
    weight = q.new_empty(batch * heads, parts, 2, dtype=torch.float32)
    y_bhf = v.new_empty(batch, heads, depth)
    block = triton.next_power_of_2(depth)
    tokens, stages = TOKENS_AND_STAGES[k.element_size()]
    blocks = max(16, triton.next_power_of_2(heads // groups)), max(16, triton.next_power_of_2(width))
    with torch.cuda.device_of(q):
        _attend_part[batch * groups, parts](
            *(q, k, v, place_5, summed, weight, heads // groups, width, depth, scale),
            *(softcap or 0.0, softcap is not None, k.element_size(), tokens, *blocks, max(16, block)),
            num_warps=4,
            num_stages=stages,
        )
        _join[(batch * heads,)](
            *(summed, weight, q if sinks_h is None else sinks_h, y_bhf, heads, depth),
            *(sinks_h is not None, parts, block),
            num_warps=2,
        )
    return y_bhf


@triton.jit
def _capped(scores, softcap):
    """softcap * tanh(scores / softcap)."""
    return softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)


@triton.jit
def _at(address, near, SIZE: tl.constexpr):
    """A pointer to numbers like those of another one, as a way from there: so the compiler sees that it is
    aligned, as torch aligns memory, and loads several numbers at once."""
    return near + tl.multiple_of((address - near.to(tl.int64)) // SIZE, 16)


@triton.jit
def _attend_part(
    q,
    k,
    v,
    place,
    summed,
    weight,
    shared,
    width,
    depth,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    pair, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    capacity, held, seen = tl.load(place + 2), tl.load(place + 3), tl.load(place + 4)
    keys = _at(tl.load(place), k, SIZE) + pair * capacity * width
    values = _at(tl.load(place + 1), v, SIZE) + pair * capacity * depth
    each = tl.cdiv(tl.cdiv(held + 1 - seen, parts), TOKENS) * TOKENS
    start = seen + part * each
    stop = tl.minimum(start + each, held)

    h, e, f = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, DEPTH)
    has_h, has_e, has_f = h < shared, e < width, f < depth
    rows = pair * shared + h
    asked = tl.load(q + rows[:, None] * width + e[None, :], mask=has_h[:, None] & has_e[None, :], other=0.0)
    top = tl.full([HEADS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HEADS], dtype=tl.float32)
    found = tl.zeros([HEADS, DEPTH], dtype=tl.float32)
    for first in range(start, stop, TOKENS):
        at = first + tl.arange(0, TOKENS)
        there = at < stop
        key = tl.load(
            keys + at[:, None] * width + e[None, :], mask=there[:, None] & has_e[None, :], other=0.0
        )
        value = tl.load(
            values + at[:, None] * depth + f[None, :], mask=there[:, None] & has_f[None, :], other=0.0
        )
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            scores = _capped(scores, softcap)
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        kept, shares = tl.exp(top - higher), tl.exp(scores - higher[:, None])
        total = total * kept + tl.sum(shares, 1)
        found = found * kept[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        top = higher

    if (start <= held) & (held < start + each):  # the new token is this part's
        key = tl.load(k + pair * width + e, mask=has_e, other=0.0)
        value = tl.load(v + pair * depth + f, mask=has_f, other=0.0)
        tl.store(keys + held * width + e, key, mask=has_e)
        tl.store(values + held * depth + f, value, mask=has_f)
        score = tl.sum(asked.to(tl.float32) * key[None, :].to(tl.float32), 1) * scale
        if CAPPED:
            score = _capped(score, softcap)
        higher = tl.maximum(top, score)
        kept, share = tl.exp(top - higher), tl.exp(score - higher)
        total = total * kept + share
        found = found * kept[:, None] + share[:, None] * value[None, :].to(tl.float32)
        top = higher

    slot = rows * parts + part
    tl.store(summed + slot[:, None] * depth + f[None, :], found, mask=has_h[:, None] & has_f[None, :])
    tl.store(weight + slot * 2, top, mask=has_h)
    tl.store(weight + slot * 2 + 1, total, mask=has_h)


@triton.jit
def _join(
    summed, weight, sinks, y, heads, depth, HAS_SINK: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part, f = tl.arange(0, PARTS), tl.arange(0, DEPTH)
    has_f = f < depth
    slot = row * PARTS + part
    top, total = tl.load(weight + slot * 2), tl.load(weight + slot * 2 + 1)
    highest = tl.max(top, 0)
    sink = 0.0
    if HAS_SINK:
        logit = tl.load(sinks + row % heads).to(tl.float32)
        highest = tl.maximum(highest, logit)
        sink = tl.exp(logit - highest)
    share = tl.exp(top - highest)
    found = tl.load(summed + slot[:, None] * depth + f[None, :], mask=has_f[None, :], other=0.0)
    found = tl.sum(found * share[:, None], 0) / (tl.sum(total * share, 0) + sink)
    tl.store(y + row * depth + f, found.to(y.dtype.element_ty), mask=has_f)
