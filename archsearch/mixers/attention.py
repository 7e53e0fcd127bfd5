"""Causal softmax attention.

Shape suffixes: b batch, l length, d d_model, h query heads, g key/value heads, e head_dim, t cached tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.rope import Rotary
from archsearch.mixers.short_conv import ShortConv
from archsearch.spec.layers import Attention


class KvCache(NamedTuple):
    """Keys and values of the last tokens, (batch, kv_heads, tokens, head_dim) each."""

    k_bgte: Tensor
    v_bgte: Tensor

    def append(self, k_bgle: Tensor, v_bgle: Tensor, window: int | None) -> KvCache:
        k = torch.cat([self.k_bgte, k_bgle], dim=2)
        v = torch.cat([self.v_bgte, v_bgle], dim=2)
        return last_tokens(k, v, window)


class AttentionState(NamedTuple):
    cache: KvCache
    conv: Tensor | None
    position: int


def last_tokens(k_bgle: Tensor, v_bgle: Tensor, window: int | None) -> KvCache:
    """The cache that the next token needs: everything, or the last `window` tokens."""
    if window is None or k_bgle.shape[2] <= window:
        return KvCache(k_bgle, v_bgle)
    # Cloned, so that the cache holds these tokens and not the storage of all.
    return KvCache(k_bgle[:, :, -window:].clone(), v_bgle[:, :, -window:].clone())


def causal_attention(
    q_bhle: Tensor, k_bgle: Tensor, v_bgle: Tensor, *, scale: float, window: int | None, kernels: Kernels
) -> Tensor:
    """softmax(scale q k^T) v over the tokens up to each one, the last `window` of them where given."""
    kernel = kernels.get("attention", q_bhle)
    if kernel is not None:
        sizes = (-1, -1) if window is None else (window - 1, 0)
        q, k, v = (t.transpose(1, 2) for t in (q_bhle, k_bgle, v_bgle))
        return kernel(q, k, v, softmax_scale=scale, causal=True, window_size=sizes).transpose(1, 2)
    length = q_bhle.shape[2]
    grouped = q_bhle.shape[1] != k_bgle.shape[1]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(
            q_bhle, k_bgle, v_bgle, is_causal=True, scale=scale, enable_gqa=grouped
        )
    age = torch.arange(length, device=q_bhle.device)
    age = age[:, None] - age[None, :]
    mask = (age >= 0) & (age < window)
    return F.scaled_dot_product_attention(
        q_bhle, k_bgle, v_bgle, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def attend_to_cache(q_bhe: Tensor, cache: KvCache, scale: float) -> Tensor:
    """One query token a sequence against everything cached."""
    grouped = q_bhe.shape[1] != cache.k_bgte.shape[1]
    y = F.scaled_dot_product_attention(
        q_bhe[:, :, None], cache.k_bgte, cache.v_bgte, scale=scale, enable_gqa=grouped
    )
    return y[:, :, 0]


class AttentionMixer(Mixer):
    """`attention`: grouped queries, rotary positions, sliding window, query/key norm, short convolution."""

    def __init__(self, spec: Attention, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        assert spec.heads is not None, "resolve the spec first"
        assert spec.kv_heads is not None
        assert spec.head_dim is not None
        assert spec.scale is not None
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.scale, self.window, self.kernels = spec.scale, spec.window, around.kernels
        self.q_width, self.kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        width = self.q_width + 2 * self.kv_width
        self.qkv_proj = nn.Linear(around.d_model, width, bias=spec.bias)
        self.conv = (
            ShortConv(width, spec.conv, bias=False, silu=False, kernels=around.kernels) if spec.conv else None
        )
        self.rope = Rotary(spec.rope, self.head_dim) if spec.rope else None
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if spec.qk_norm is not None:
            full = spec.qk_norm == "full"
            self.q_norm = RMSNorm(self.q_width if full else self.head_dim, around.eps)
            self.k_norm = RMSNorm(self.kv_width if full else self.head_dim, around.eps)
        self.norm_full = spec.qk_norm == "full"
        self.out_proj = nn.Linear(self.q_width, around.d_model, bias=spec.output_bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.qkv_proj, generator)
        if self.conv is not None:
            self.conv.reset_parameters(generator)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        qkv = self.qkv_proj(x_bld)
        q, k, v = self._heads(qkv if self.conv is None else self.conv(qkv), 0)
        return self._out(self._attend(q, k, v))

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, AttentionState]:
        qkv, conv = self.qkv_proj(x_bld), None
        if self.conv is not None:
            qkv, conv = self.conv.prefill(qkv)
        q, k, v = self._heads(qkv, 0)
        cache = last_tokens(k.contiguous(), v.contiguous(), self.window)
        return self._out(self._attend(q, k, v)), AttentionState(cache, conv, x_bld.shape[1])

    def step(
        self, x_bd: Tensor, state: AttentionState, call: Call | None = None
    ) -> tuple[Tensor, AttentionState]:
        qkv, conv = self.qkv_proj(x_bd), None
        if self.conv is not None and state.conv is not None:
            qkv, conv = self.conv.step(qkv, state.conv)
        q, k, v = self._heads(qkv[:, None], state.position)
        cache = state.cache.append(k, v, self.window)
        y_bhe = attend_to_cache(q[:, :, 0], cache, self.scale)
        return self._project(y_bhe.flatten(1)), AttentionState(cache, conv, state.position + 1)

    def _attend(self, q_bhle: Tensor, k_bgle: Tensor, v_bgle: Tensor) -> Tensor:
        return causal_attention(
            q_bhle, k_bgle, v_bgle, scale=self.scale, window=self.window, kernels=self.kernels
        )

    def _heads(self, qkv_bld: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Projected features -> queries, keys and values a head, normed and rotated."""
        q, k, v = qkv_bld.split([self.q_width, self.kv_width, self.kv_width], dim=-1)
        if self.norm_full:
            q, k = self._normed(q, k)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if not self.norm_full:
            q, k = self._normed(q, k)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def _out(self, y_bhle: Tensor) -> Tensor:
        return self._project(y_bhle.transpose(1, 2).flatten(2))

    def _project(self, y: Tensor) -> Any:
        return y if self.out_proj is None else self.out_proj(y)
