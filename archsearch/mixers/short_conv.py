"""Causal depthwise convolution over a few tokens.

Shape suffixes: b batch, l length, c channels, k kernel width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.mixers.blocks import blocks
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.kernels.limits import short_conv_problem


class ShortConv(nn.Module):
    """y_t = sum_j w_j x_{t-k+1+j} (+ bias), a channel at a time; then SiLU where `silu`.

    The state is the last k - 1 inputs (batch, k - 1, channels), zeros before the first token.
    """

    def __init__(self, channels: int, width: int, *, bias: bool, silu: bool, kernels: Kernels):
        super().__init__()
        self.width = width
        self.silu = silu
        problem = short_conv_problem(channels, width)
        self.kernel = kernels.choose("short_conv", problem)
        self.step_kernel = kernels.choose("short_conv_step")
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        bound = self.width**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x_blc: Tensor) -> Tensor:
        kernel = self.kernel.of(x_blc)
        if kernel is not None:
            return kernel(x_blc, self.weight, self.bias, silu=self.silu)
        return shifted_conv(x_blc, self.weight, self.bias, silu=self.silu)

    def prefill(self, x_blc: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x_blc[:, max(0, x_blc.shape[1] - self.width + 1) :], (0, 0, self.width - 1, 0))
        return self(x_blc), padded[:, padded.shape[1] - self.width + 1 :].clone()

    def step(self, x_bc: Tensor, state_bkc: Tensor) -> tuple[Tensor, Tensor]:
        kernel = None if torch.is_grad_enabled() else self.step_kernel.of(x_bc)
        if kernel is not None and state_bkc.dtype == x_bc.dtype:
            return kernel(x_bc, state_bkc, self.weight, self.bias, silu=self.silu)
        window_bkc = torch.cat([state_bkc, x_bc[:, None]], dim=1)
        y_bc = torch.einsum("bkc,ck->bc", window_bkc, self.weight)
        if self.bias is not None:
            y_bc = y_bc + self.bias
        return self._activate(y_bc), window_bkc[:, 1:]

    def _activate(self, y: Tensor) -> Tensor:
        return F.silu(y) if self.silu else y


def shifted_conv(x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, *, silu: bool = False) -> Tensor:
    """The convolution as a sum of shifted products, on a CPU faster than a grouped conv1d; SiLU if asked.

    Differentiable once.
    """
    if torch.compiler.is_compiling():
        return _plain_conv(x_blc, weight_ck, bias_c, silu)
    return _ShiftedConv.apply(x_blc, weight_ck, bias_c, silu)


def _plain_conv(x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, silu: bool) -> Tensor:
    """The same in operations that a compiler fuses, forward and backward."""
    length, width = x_blc.shape[1], weight_ck.shape[1]
    padded_blc = F.pad(x_blc, (0, 0, width - 1, 0))
    y_blc = padded_blc[:, :length] * weight_ck[:, 0]
    for j in range(1, width):
        y_blc = y_blc + padded_blc[:, j : j + length] * weight_ck[:, j]
    if bias_c is not None:
        y_blc = y_blc + bias_c
    return F.silu(y_blc) if silu else y_blc


class _ShiftedConv(torch.autograd.Function):
    """Block by block in cache. The backward pass convolves again: only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, silu: bool) -> Tensor:
        ctx.save_for_backward(x_blc, weight_ck, bias_c)
        ctx.silu = silu
        dtype = torch.promote_types(x_blc.dtype, weight_ck.dtype)
        taps = _by_tap(weight_ck, dtype)
        y_blc = x_blc.new_empty(x_blc.shape, dtype=dtype)
        for rows, span in blocks(x_blc):
            y = _convolve(x_blc[rows].to(dtype), taps, bias_c, span, out=y_blc[rows, span])
            if silu:
                F.silu(y, inplace=True)
        return y_blc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_blc: Tensor) -> tuple[Tensor | None, ...]:
        x_blc, weight_ck, bias_c = ctx.saved_tensors
        taps = _by_tap(weight_ck, dy_blc.dtype)
        dx_blc = torch.empty_like(dy_blc, memory_format=torch.contiguous_format)
        dtaps, dbias_c = [torch.zeros_like(taps[0]) for _ in taps], torch.zeros_like(taps[0])
        for rows, span in blocks(x_blc):
            x, dx, dy = x_blc[rows].to(dy_blc.dtype), dx_blc[rows], dy_blc[rows, span]
            if ctx.silu:
                y = _convolve(x, taps, bias_c, span, out=torch.empty_like(dy))
                dy = torch.ops.aten.silu_backward(dy, y)
            torch.mul(dy, taps[0], out=dx[:, span])
            dtaps[0] += (dy * x[:, span]).sum((0, 1))
            for back, now, before in _reaching(span, len(taps)):
                # The tokens before this block have all that is their own already.
                dx[:, before].addcmul_(dy[:, now], taps[back])
                dtaps[back] += (dy[:, now] * x[:, before]).sum((0, 1))
            if bias_c is not None:
                dbias_c += dy.sum((0, 1))
        return (
            dx_blc.to(x_blc.dtype),
            torch.stack(dtaps[::-1], dim=1).to(weight_ck.dtype),
            None if bias_c is None else dbias_c.to(bias_c.dtype),
            None,
        )


def _convolve(x_blc: Tensor, taps: list[Tensor], bias_c: Tensor | None, span: slice, out: Tensor) -> Tensor:
    """The convolution at the tokens of a span."""
    if bias_c is None:
        torch.mul(x_blc[:, span], taps[0], out=out)
    else:
        torch.addcmul(bias_c.to(out.dtype), x_blc[:, span], taps[0], out=out)
    for back, now, before in _reaching(span, len(taps)):
        out[:, now].addcmul_(x_blc[:, before], taps[back])
    return out


def _by_tap(weight_ck: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Weights by how far a tap looks back, (c,) each, in memory of its own: strided reads cost more."""
    return [tap_c.contiguous() for tap_c in reversed(weight_ck.to(dtype).unbind(1))]


def _reaching(span: slice, width: int) -> Iterator[tuple[int, slice, slice]]:
    """How far back, which tokens of the span have one so far back, counted within it, and those tokens."""
    for back in range(1, min(width, span.stop)):
        first = max(span.start, back)
        if first < span.stop:
            yield back, slice(first - span.start, None), slice(first - back, span.stop - back)
