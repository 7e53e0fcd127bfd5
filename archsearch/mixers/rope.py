"""Rotary position embedding (arXiv 2104.09864) and its stretched forms.

Shape suffixes: b batch, h heads, l length, e head_dim, r rotated channels, f pairs of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from archsearch.mixers.kernels import Kernels
from archsearch.spec.layers.rope import Rope, RopeScaling


class Rotary(nn.Module):
    """Rotates pairs of channels of each head by position * frequency; channels after the rotated ones pass.

    Frequencies and angles are float64, and only the cosines and sines are rounded, to the tensor's dtype (to
    float32 for the kernel): positions times frequencies lose digits in float32 at long contexts. transformers
    keeps both in float32, where an angle of a radians is off by up to a * 2^-23 or so: its rotations differ
    from these by that rounding and by nothing else.
    """

    def __init__(self, spec: Rope, head_dim: int, kernels: Kernels | None = None):
        super().__init__()
        self.kernel = (kernels or Kernels()).choose("rope", needed=False)
        self.rotated = spec.rotary_dim(head_dim)
        self.interleaved = spec.interleaved
        self._frequencies = frequencies(spec, head_dim)
        self._factor = attention_factor(spec)
        self._cached: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def cover(self, positions: int) -> None:
        """Have cosines and sines at hand for so many positions, wherever some have been asked for."""
        kept = set(self._cached)
        if self.kernel.function is not None:
            kept |= {(device, torch.float32) for device, _ in kept}
        for device, dtype in kept:
            self._tables(positions, device, dtype)

    def forward(self, x_bhle: Tensor, start: int | Tensor) -> Tensor:
        """Rotate positions start, start + 1, ... A tensor: the position of one token, which is covered."""
        kernel = None
        # torch's own form is sooner launched for one token, and torch.compile makes such a kernel by itself.
        if (x_bhle.shape[2] > 1 or isinstance(start, Tensor)) and not torch.compiler.is_compiling():
            kernel = self.kernel.of(x_bhle)
        dtype = x_bhle.dtype if kernel is None else torch.float32
        if isinstance(start, Tensor):
            cos, sin = (table.index_select(0, start.view(1)) for table in self._cached[x_bhle.device, dtype])
        else:
            end = start + x_bhle.shape[2]
            cos, sin = (table[start:end] for table in self._tables(end, x_bhle.device, dtype))
        if kernel is not None:
            turned: Tensor = kernel(x_bhle, cos, sin, interleaved=self.interleaved)
            return turned
        half = self.rotated // 2
        if self.interleaved:
            turned, rest = x_bhle.split([self.rotated, x_bhle.shape[-1] - self.rotated], dim=-1)
            a, b = turned.unflatten(-1, (half, 2)).unbind(-1)
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
            return turned if not rest.shape[-1] else torch.cat([turned, rest], dim=-1)
        a, b, rest = x_bhle.split([half, half, x_bhle.shape[-1] - 2 * half], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def _tables(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (length or more, r / 2), grown as needed and kept."""
        cached = self._cached.get((device, dtype))
        if cached is None or cached[0].shape[0] < length:
            grown = max(length, 2 * cached[0].shape[0] if cached is not None else 256)
            # Ordinary tensors even when the first call comes from inference mode: training may follow.
            with torch.inference_mode(False), torch.no_grad():
                angles = torch.outer(
                    torch.arange(grown, dtype=torch.float64, device="cpu"), self._frequencies
                )
                cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
                cached = cos.to(device, dtype), sin.to(device, dtype)
            self._cached[device, dtype] = cached
        return cached


def frequencies(spec: Rope, head_dim: int) -> Tensor:
    """Radians a token of each pair (r / 2), in float64: theta^(-2i/r), as the scaling changes them.

    On the CPU, whatever device a model is built on: no parameter, they do not move with it.
    """
    rotated = spec.rotary_dim(head_dim)
    plain_f = spec.theta ** -(torch.arange(0, rotated, 2, dtype=torch.float64, device="cpu") / rotated)
    scaling = spec.scaling
    if scaling is None:
        return plain_f
    if scaling.kind == "longrope":
        return plain_f / torch.tensor(scaling.factors, dtype=torch.float64, device="cpu")
    assert scaling.factor is not None
    if scaling.kind == "linear":
        return plain_f / scaling.factor
    kept_f = _kept_by_llama3(plain_f, scaling) if scaling.kind == "llama3" else _kept_by_yarn(spec, rotated)
    return kept_f * plain_f + (1 - kept_f) * plain_f / scaling.factor


def _kept_by_llama3(plain_f: Tensor, scaling: RopeScaling) -> Tensor:
    """How much of each frequency stays: linear in the turns that it makes over the original context."""
    assert scaling.original_context is not None
    turns_f = plain_f * scaling.original_context / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns_f - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(spec: Rope, rotated: int) -> Tensor:
    """How much of each frequency stays: linear in the channel, between those that make so many turns."""
    scaling = spec.scaling
    assert scaling is not None
    assert scaling.original_context is not None

    def channel(turns: float, context: int) -> float:
        """The (fractional) pair that makes so many turns over the context."""
        return rotated * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    first = channel(scaling.beta_fast, scaling.original_context)
    last = channel(scaling.beta_slow, scaling.original_context)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    # A thousandth of a channel where the bounds meet, as the reference has it.
    width = last - first or 0.001
    return 1 - ((torch.arange(rotated // 2, dtype=torch.float64, device="cpu") - first) / width).clamp(0, 1)


def attention_factor(spec: Rope) -> float:
    """What the rotated channels are multiplied by."""
    scaling = spec.scaling
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    assert scaling.factor is not None
    assert scaling.original_context is not None
    if scaling.factor <= 1:
        return 1.0
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
