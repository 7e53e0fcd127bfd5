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
        self.step_kernel = kernels.choose("short_conv_step", problem)
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
        return self._activate(shifted_conv(x_blc, self.weight, self.bias))

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


def shifted_conv(x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None) -> Tensor:
    """The convolution as a sum of shifted products: on a CPU faster than a grouped conv1d."""
    return _ShiftedConv.apply(x_blc, weight_ck, bias_c)


class _ShiftedConv(torch.autograd.Function):
    """Autograd would pad and add a whole gradient a tap; here each tap adds to its slice, in place."""

    @staticmethod
    def forward(ctx: Any, x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_blc, weight_ck)
        ctx.has_bias = bias_c is not None
        dtype = torch.promote_types(x_blc.dtype, weight_ck.dtype)
        x_blc, weight_kc = x_blc.to(dtype), _by_tap(weight_ck, dtype)
        y_blc = x_blc * weight_kc[-1]
        if bias_c is not None:
            y_blc += bias_c
        for back, now, before in _taps(x_blc.shape[1], len(weight_kc)):
            y_blc[:, now].addcmul_(x_blc[:, before], weight_kc[-1 - back])
        return y_blc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_blc: Tensor) -> tuple[Tensor | None, ...]:
        x_blc, weight_ck = ctx.saved_tensors
        weight_kc = _by_tap(weight_ck, dy_blc.dtype)
        dx_blc = dy_blc * weight_kc[-1]
        dweight_kc = torch.zeros_like(weight_kc)
        dweight_kc[-1] = (dy_blc * x_blc).sum((0, 1))
        for back, now, before in _taps(x_blc.shape[1], len(weight_kc)):
            dx_blc[:, before].addcmul_(dy_blc[:, now], weight_kc[-1 - back])
            dweight_kc[-1 - back] = (dy_blc[:, now] * x_blc[:, before]).sum((0, 1))
        dbias_c = dy_blc.sum((0, 1)) if ctx.has_bias else None
        return dx_blc.to(x_blc.dtype), dweight_kc.mT.to(weight_ck.dtype), dbias_c


def _by_tap(weight_ck: Tensor, dtype: torch.dtype) -> Tensor:
    """(k, c), each tap's weights side by side: reading them strided costs more than this copy."""
    return weight_ck.to(dtype).mT.contiguous()


def _taps(length: int, width: int) -> Iterator[tuple[int, slice, slice]]:
    """How far a tap looks back, the tokens that have one so far back, and those tokens."""
    for back in range(1, min(width, length)):
        yield back, slice(back, None), slice(0, length - back)
