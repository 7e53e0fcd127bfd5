"""Rotary position embedding (arXiv 2104.09864), half-split layout.

Shape suffixes: b batch, h heads, l length, e head_dim, r rotated channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archsearch.spec.layers import Rope


class Rotary(nn.Module):
    """Rotates channels (i, i + r/2) of each head by position * theta^(-2i/r); the rest pass."""

    def __init__(self, spec: Rope, head_dim: int):
        super().__init__()
        self.rotated = spec.rotary_dim(head_dim)
        # Kept in float64: positions times frequencies lose digits in float32 at long contexts.
        exponents = torch.arange(0, self.rotated, 2, dtype=torch.float64) / self.rotated
        self._frequencies = spec.theta**-exponents
        self._cached: tuple[Tensor, Tensor] | None = None

    def forward(self, x_bhle: Tensor, start: int) -> Tensor:
        """Rotate positions start, start + 1, ..."""
        end = start + x_bhle.shape[2]
        cos, sin = (table[start:end] for table in self._tables(end, x_bhle))
        half = self.rotated // 2
        a, b, rest = x_bhle.split([half, half, x_bhle.shape[-1] - 2 * half], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def _tables(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (length or more, r / 2), grown as needed and kept."""
        cached = self._cached
        if (
            cached is None
            or cached[0].shape[0] < length
            or cached[0].dtype != like.dtype
            or cached[0].device != like.device
        ):
            grown = max(length, 2 * cached[0].shape[0] if cached is not None else 256)
            # Ordinary tensors even when the first call comes from inference mode: training may follow.
            with torch.inference_mode(False), torch.no_grad():
                angles = torch.outer(torch.arange(grown, dtype=torch.float64), self._frequencies)
                cached = (angles.cos().to(like), angles.sin().to(like))
            self._cached = cached
        return cached
