"""Norms of blocks, heads and gates.

Shape suffixes: d the normed width; leading axes are free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467), over groups of width / groups channels each."""

    def __init__(self, width: int, eps: float, groups: int = 1):
        super().__init__()
        self.eps = eps
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_d: Tensor) -> Tensor:
        width = x_d.shape[-1]
        if self.groups == 1:
            return F.rms_norm(x_d, (width,), self.weight, self.eps)
        grouped = x_d.unflatten(-1, (self.groups, width // self.groups))
        return F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps=eps)


NORMS: dict[str, type[nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
