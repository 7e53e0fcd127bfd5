"""The cross-entropy of logits in half precision, read once each way.

torch's own goes over the logits in float32: it writes them, their logarithms and their gradient at twice the
size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096
"""Numbers of a row at a time."""


def cross_entropy(logits_tv: Tensor, targets_t: Tensor, ignore: int) -> Tensor:
    """The mean of -log softmax(logits)[target] over the tokens whose target is not `ignore`, in float32."""
    return _CrossEntropy.apply(logits_tv, targets_t, ignore)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_tv: Tensor, targets_t: Tensor, ignore: int) -> Tensor:
        logits_tv, targets_t = logits_tv.contiguous(), targets_t.contiguous()
        tokens, vocabulary = logits_tv.shape
        losses_t, norms_t = logits_tv.new_empty(2, tokens, dtype=torch.float32)
        block = _block(vocabulary)
        with torch.cuda.device_of(logits_tv):
            _forward[(tokens,)](
                logits_tv, targets_t, losses_t, norms_t, vocabulary, ignore, block, num_warps=8
            )
        count = (targets_t != ignore).sum()
        ctx.save_for_backward(logits_tv, targets_t, norms_t, count)
        ctx.ignore = ignore
        return losses_t.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        logits_tv, targets_t, norms_t, count = ctx.saved_tensors
        tokens, vocabulary = logits_tv.shape
        dlogits_tv, block = torch.empty_like(logits_tv), _block(vocabulary)
        grid = tokens, triton.cdiv(vocabulary, block)
        scale = (dloss / count).to(torch.float32)
        with torch.cuda.device_of(logits_tv):
            _backward[grid](
                logits_tv, targets_t, norms_t, scale, dlogits_tv, vocabulary, ctx.ignore, block, num_warps=8
            )
        return dlogits_tv, None, None


def _block(vocabulary: int) -> int:
    return min(BLOCK, triton.next_power_of_2(vocabulary))


@triton.jit
def _forward(logits, targets, losses, norms, vocabulary, ignore, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * vocabulary
    at = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    # One maximum and one sum a lane; lanes meet at the end.
    for block in range(0, vocabulary, BLOCK):
        value = tl.load(logits + start + block + at, mask=block + at < vocabulary, other=float("-inf"))
        value = value.to(tl.float32)
        higher = tl.maximum(largest, value)
        # A lane that has seen nothing but minus infinity keeps a sum of zero.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - shift) + tl.exp(value - shift)
        largest = higher
    highest = tl.max(largest, 0)
    norm = highest + tl.log(tl.sum(total * tl.exp(largest - highest), 0))
    target = tl.load(targets + row)
    counts = target != ignore
    own = tl.load(logits + start + target, mask=counts, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counts, norm - own, 0.0))
    tl.store(norms + row, norm)


@triton.jit
def _backward(logits, targets, norms, scale, dlogits, vocabulary, ignore, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * vocabulary
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < vocabulary
    target = tl.load(targets + row)
    weight = tl.where(target != ignore, tl.load(scale), 0.0)
    value = tl.load(logits + start + at, mask=there, other=float("-inf")).to(tl.float32)
    found = tl.exp(value - tl.load(norms + row)) - tl.where(at == target, 1.0, 0.0)
    tl.store(dlogits + start + at, (found * weight).to(dlogits.dtype.element_ty), mask=there)
