"""LFM2's gated short convolution.

Shape suffixes: b batch, l length, d d_model, w inner width, p the three parts B, C, x side by side,
k kernel width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.linear_scan import time_blocks
from archsearch.mixers.short_conv import ShortConv
from archsearch.spec.layers.conv import GatedConv


class GatedConvState(NamedTuple):
    """The convolution's last inputs B * x, (batch, d_conv - 1, width)."""

    conv_bkw: Tensor


class GatedConvMixer(Mixer):
    """`gated_conv`: y = W_out (C * conv(B * x)) with [B; C; x] = W_in u, no activation.

    Parameters are laid out as in transformers' `Lfm2ShortConv` (in_proj gives B, C, x in this order; its
    conv.weight has an axis of size 1 more).
    """

    def __init__(self, spec: GatedConv, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        width = spec.inner_width(around.d_model)
        self.in_proj = nn.Linear(spec.input_width(around.d_model), 3 * width, bias=spec.bias)
        self.conv = ShortConv(width, spec.d_conv, bias=spec.conv_bias, silu=False, kernels=around.kernels)
        self.out_proj = nn.Linear(width, around.d_model, bias=spec.bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.in_proj, generator)
        self.conv.reset_parameters(generator)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        return self._project(self._mix(masked(self.in_proj(x_bld), call)))

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, GatedConvState]:
        parts_blp = masked(self.in_proj(x_bld), call)
        kept = self.conv.width - 1
        B_bkw, _, x_bkw = parts_blp[:, -kept:].chunk(3, dim=-1)
        gated_bkw = B_bkw * x_bkw
        state = GatedConvState(F.pad(gated_bkw, (0, 0, kept - gated_bkw.shape[1], 0)))
        return self._project(self._mix(parts_blp)), state

    def step(
        self, x_bd: Tensor, state: GatedConvState, call: Call | None = None
    ) -> tuple[Tensor, GatedConvState]:
        B_bw, C_bw, x_bw = self.in_proj(x_bd).chunk(3, dim=-1)
        y_bw, conv_bkw = self.conv.step(B_bw * x_bw, state.conv_bkw)
        return self._project(C_bw * y_bw), GatedConvState(conv_bkw)

    def _mix(self, parts_blp: Tensor) -> Tensor:
        if self.conv.kernel.of(parts_blp) is not None:
            B_blw, C_blw, x_blw = parts_blp.chunk(3, dim=-1)
            return C_blw * self.conv(B_blw * x_blw)
        return gated_conv(parts_blp, self.conv.weight, self.conv.bias)

    def _project(self, y: Tensor) -> Tensor:
        return y if self.out_proj is None else self.out_proj(y)


def gated_conv_reference(parts_blp: Tensor, weight_wk: Tensor, bias_w: Tensor | None) -> Tensor:
    """y_t = C_t * (sum_j w_j B_{t-k+1+j} x_{t-k+1+j} + bias), token by token: the truth."""
    B_blw, C_blw, x_blw = parts_blp.chunk(3, dim=-1)
    width = weight_wk.shape[1]
    outputs = []
    for t in range(parts_blp.shape[1]):
        y_bw = torch.zeros_like(B_blw[:, 0]) if bias_w is None else bias_w.expand_as(B_blw[:, 0])
        for back in range(min(width, t + 1)):
            y_bw = y_bw + weight_wk[:, width - 1 - back] * B_blw[:, t - back] * x_blw[:, t - back]
        outputs.append(C_blw[:, t] * y_bw)
    return torch.stack(outputs, dim=1)


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def gated_conv(parts_blp: Tensor, weight_wk: Tensor, bias_w: Tensor | None) -> Tensor:
    """The same as sums of shifted products. Differentiable once."""
    return _GatedConv.apply(parts_blp, weight_wk, bias_w)


class _GatedConv(torch.autograd.Function):
    """Keeps B, C and x alone and computes the rest again, in blocks of time that stay in the cache.

    A block's convolution reads B * x of the kernel's width - 1 tokens before it, and its gradient as many
    after it. The gradients of B, C and x are written side by side, as the projection's backward pass reads
    them.
    """

    @staticmethod
    def forward(ctx: Any, parts_blp: Tensor, weight_wk: Tensor, bias_w: Tensor | None) -> Tensor:
        ctx.save_for_backward(parts_blp, weight_wk, bias_w)
        B_blw, C_blw, x_blw = parts_blp.chunk(3, dim=-1)
        weight_kw = _by_tap(parts_blp, weight_wk)
        y_blw = torch.empty(B_blw.shape, dtype=weight_kw.dtype, device=B_blw.device)
        for block in time_blocks(B_blw.shape[1], B_blw[:, 0].numel()):
            conv_blw = _convolved(_gated(B_blw, x_blw, block, weight_kw), weight_kw, bias_w, block)
            torch.mul(conv_blw, C_blw[:, block], out=y_blw[:, block])
        return y_blw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_blw: Tensor) -> tuple[Tensor | None, ...]:
        parts_blp, weight_wk, bias_w = ctx.saved_tensors
        B_blw, C_blw, x_blw = parts_blp.chunk(3, dim=-1)
        weight_kw = _by_tap(parts_blp, weight_wk)
        dparts_blp, dweight_kw = torch.empty_like(parts_blp), torch.zeros_like(weight_kw)
        dbias_w = torch.zeros_like(weight_kw[0])
        dB_blw, dC_blw, dx_blw = dparts_blp.chunk(3, dim=-1)
        for block in time_blocks(B_blw.shape[1], B_blw[:, 0].numel()):
            gated_blw = _gated(B_blw, x_blw, block, weight_kw)
            torch.mul(dy_blw[:, block], _convolved(gated_blw, weight_kw, bias_w, block), out=dC_blw[:, block])
            ahead = slice(block.start, block.stop + len(weight_kw) - 1)
            dconv_blw = dy_blw[:, ahead] * C_blw[:, ahead]
            tokens = block.stop - block.start
            dgated_blw = dconv_blw[:, :tokens] * weight_kw[-1]
            for back in range(1, min(len(weight_kw), dconv_blw.shape[1])):
                later_blw = dconv_blw[:, back : back + tokens]
                dgated_blw[:, : later_blw.shape[1]].addcmul_(later_blw, weight_kw[-1 - back])
            for back, now, before in _taps(block, len(weight_kw)):
                dweight_kw[-1 - back] += (dconv_blw[:, :tokens][:, now] * gated_blw[:, before]).sum((0, 1))
            if bias_w is not None:
                dbias_w += dconv_blw[:, :tokens].sum((0, 1))
            torch.mul(dgated_blw, x_blw[:, block], out=dB_blw[:, block])
            torch.mul(dgated_blw, B_blw[:, block], out=dx_blw[:, block])
        dweight_wk = dweight_kw.mT.to(weight_wk.dtype)
        return dparts_blp, dweight_wk, None if bias_w is None else dbias_w.to(bias_w.dtype)


def _by_tap(parts_blp: Tensor, weight_wk: Tensor) -> Tensor:
    """The kernel in the dtype to compute in, each tap's weights together: strided ones are slow to read."""
    return weight_wk.to(torch.promote_types(parts_blp.dtype, weight_wk.dtype)).mT.contiguous()


def _gated(B_blw: Tensor, x_blw: Tensor, block: slice, weight_kw: Tensor) -> Tensor:
    """B * x of a block and of the tokens before it that its convolution reads."""
    reach = slice(max(0, block.start - len(weight_kw) + 1), block.stop)
    return (B_blw[:, reach] * x_blw[:, reach]).to(weight_kw.dtype)


def _convolved(gated_blw: Tensor, weight_kw: Tensor, bias_w: Tensor | None, block: slice) -> Tensor:
    y_blw = gated_blw[:, block.start - block.stop :] * weight_kw[-1]
    if bias_w is not None:
        y_blw += bias_w
    for back, now, before in _taps(block, len(weight_kw)):
        if back:
            y_blw[:, now].addcmul_(gated_blw[:, before], weight_kw[-1 - back])
    return y_blw


def _taps(block: slice, width: int) -> Iterator[tuple[int, slice, slice]]:
    """How far a tap looks back, the block's tokens that have one so far back, and where `_gated` has it."""
    reach = max(0, block.start - width + 1)
    for back in range(min(width, block.stop)):
        first = max(block.start, back)
        yield back, slice(first - block.start, None), slice(first - back - reach, block.stop - back - reach)
