"""Low-rank terms of single uses of shared layers.

Shape suffixes: d input width, r rank, s segments, w width of a segment; leading axes are free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archsearch.mixers.base import init_linear


class LoraLinear(nn.Module):
    """W x + [B_1 A_1 x; B_2 A_2 x; ...]: a projection and a low-rank term a segment of its outputs.

    LoRA (arXiv 2106.09685) as Zamba2 (arXiv 2411.15242) has it: W is shared by all uses of a layer, A and B
    are one use's own, unscaled. B starts at zero.
    """

    def __init__(self, base: nn.Linear, rank: int, segments: tuple[int, ...]):
        super().__init__()
        self.base = base
        self.down: Any = nn.ModuleList(nn.Linear(base.in_features, rank, bias=False) for _ in segments)
        self.up: Any = nn.ModuleList(nn.Linear(rank, width, bias=False) for width in segments)

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def reset_parameters(self, generator: torch.Generator) -> None:
        for down, up in zip(self.down, self.up, strict=True):
            init_linear(down, generator)
            nn.init.zeros_(up.weight)

    def forward(self, x_d: Tensor) -> Tensor:
        terms = [up(down(x_d)) for down, up in zip(self.down, self.up, strict=True)]
        return self.base(x_d) + torch.cat(terms, dim=-1)


def adapt(layer: nn.Module, projections: dict[str, tuple[int, ...]], rank: int) -> None:
    """Give the layer's projections low-rank terms, in place. projections: name -> widths of segments."""
    for name, segments in projections.items():
        setattr(layer, name, LoraLinear(getattr(layer, name), rank, segments))
