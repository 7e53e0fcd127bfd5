"""Causal depthwise convolution over a few tokens.

Shape suffixes: b batch, l length, c channels, k kernel width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.kernels import Kernels


class ShortConv(nn.Module):
    """y_t = sum_j w_j x_{t-k+1+j} (+ bias), a channel at a time; then SiLU where `silu`.

    The state is the last k - 1 inputs (batch, k - 1, channels), zeros before the first token.
    """

    def __init__(self, channels: int, width: int, *, bias: bool, silu: bool, kernels: Kernels):
        super().__init__()
        self.width = width
        self.silu = silu
        self.kernels = kernels
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        bound = self.width**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x_blc: Tensor) -> Tensor:
        kernel = self.kernels.get("short_conv", x_blc)
        if kernel is not None and self.width <= 4:
            # The kernel takes (b, c, l) with any strides; transposing keeps the channels contiguous.
            activation = "silu" if self.silu else None
            return kernel(x_blc.mT, self.weight, self.bias, activation=activation).mT
        return self._activate(shifted_conv(x_blc, self.weight, self.bias))

    def prefill(self, x_blc: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x_blc[:, max(0, x_blc.shape[1] - self.width + 1) :], (0, 0, self.width - 1, 0))
        return self(x_blc), padded[:, padded.shape[1] - self.width + 1 :].clone()

    def step(self, x_bc: Tensor, state_bkc: Tensor) -> tuple[Tensor, Tensor]:
        window_bkc = torch.cat([state_bkc, x_bc[:, None]], dim=1)
        y_bc = torch.einsum("bkc,ck->bc", window_bkc, self.weight)
        if self.bias is not None:
            y_bc = y_bc + self.bias
        return self._activate(y_bc), window_bkc[:, 1:]

    def _activate(self, y: Tensor) -> Tensor:
        return F.silu(y) if self.silu else y


def shifted_conv(x_blc: Tensor, weight_ck: Tensor, bias_c: Tensor | None) -> Tensor:
    """The convolution as a sum of shifted products: on a CPU faster than a grouped conv1d."""
    length, width = x_blc.shape[1], weight_ck.shape[1]
    padded = F.pad(x_blc, (0, 0, width - 1, 0))
    y_blc = padded[:, width - 1 :] * weight_ck[:, width - 1]
    if bias_c is not None:
        y_blc = y_blc + bias_c
    for j in range(width - 1):
        y_blc = torch.addcmul(y_blc, padded[:, j : j + length], weight_ck[:, j])
    return y_blc
