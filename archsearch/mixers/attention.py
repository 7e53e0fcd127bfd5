"""Causal softmax attention.

Shape suffixes: b batch, l length, d d_model, h query heads, g key/value heads, e head_dim, t cached tokens,
q width of all query heads, n gate numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from archsearch.mixers.attend import (
    attend_to_cache,
    attention_kernel,
    cached_attention_kernel,
    causal_attention,
    next_attention,
)
from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.cache import KvCache, Position, last_tokens, next_position
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.rope import Rotary
from archsearch.mixers.short_conv import ShortConv
from archsearch.spec.layers import Attention

Heads = tuple[Tensor, Tensor, Tensor]


class AttentionState(NamedTuple):
    """cache: own keys and values; None for a layer that reads another's. position: of the next token."""

    cache: KvCache | None
    conv: Tensor | None
    position: Position


class AttentionMixer(Mixer):
    """`attention`: grouped queries, rotary positions, sliding window, query/key norm, short convolution,
    gate, sinks, capped scores; keys and values of its own, or another layer's.

    The rows of qkv_proj are those of queries, keys, values and gate, as far as the layer has them. What other
    layers read of it are a sequence's keys and values (b, g, l, e), normed and rotated; in a step, the cache.
    """

    def __init__(self, spec: Attention, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        assert spec.kv_heads is not None, "resolve the spec first"
        assert spec.head_dim is not None
        assert spec.scale is not None
        self.head_dim, self.value_dim = spec.head_dim, spec.value_dim or spec.head_dim
        self.window, self.kernels = spec.window, around.kernels
        self.scale, self.softcap = spec.scale, spec.softcap
        self.kernel = attention_kernel(
            around.kernels,
            key_width=spec.head_dim,
            value_width=self.value_dim,
            window=spec.window,
            softcap=spec.softcap,
            sinks=spec.sinks,
        )
        self.step_kernel = cached_attention_kernel(
            around.kernels, key_width=self.head_dim, value_width=self.value_dim
        )
        w = self.widths = spec.widths()
        self.qkv_proj = nn.Linear(spec.input_width(around.d_model), w.qkv + w.gate, bias=spec.bias)
        self.conv = (
            ShortConv(w.qkv, spec.conv, bias=False, silu=False, kernels=around.kernels) if spec.conv else None
        )
        self.rope = Rotary(spec.rope, self.head_dim, around.kernels) if spec.rope else None
        self.norm_full = spec.qk_norm == "full"

        def norm(width: int) -> RMSNorm | None:
            if spec.qk_norm is None or not width:
                return None
            width = width if self.norm_full else self.head_dim
            return RMSNorm(width, around.eps, unit_offset=around.unit_offset)

        self.q_norm, self.k_norm = norm(w.q), norm(w.k)
        self.sinks = nn.Parameter(torch.zeros(w.q // self.head_dim)) if spec.sinks else None
        self.out_proj = nn.Linear(w.out, around.d_model, bias=spec.output_bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.qkv_proj, generator)
        if self.conv is not None:
            self.conv.reset_parameters(generator)
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        qkv, gate = self._projected(x_bld)
        qkv = qkv if self.conv is None else self.conv(masked(qkv, call))
        q, k, v = self._heads(qkv, 0, call)
        return self._attended(q, k, v, gate, call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, AttentionState]:
        (qkv, gate), conv, cache = self._projected(x_bld), None, None
        if self.conv is not None:
            qkv, conv = self.conv.prefill(masked(qkv, call))
        q, k, v = self._heads(qkv, 0, call)
        if not self.spec.kv_from:
            recordable = self.step_kernel.of(k) is not None
            cache = last_tokens(k.contiguous(), v.contiguous(), self.window, recordable=recordable)
        return self._attended(q, k, v, gate, call), AttentionState(cache, conv, Position(x_bld.shape[1]))

    def step(
        self, x_bd: Tensor, state: AttentionState, call: Call | None = None
    ) -> tuple[Tensor, AttentionState]:
        (qkv, gate), conv = self._projected(x_bd), None
        if self.conv is not None and state.conv is not None:
            qkv, conv = self.conv.step(qkv, state.conv)
        q, k, v = (t[:, :, 0] for t in self._own_heads(qkv[:, None], state.position))
        mask_bt, own = None if call is None else call.mask, None
        forms: dict[str, Any] = {"softcap": self.softcap, "sinks_h": self.sinks}
        if state.cache is None:
            y_bhe = attend_to_cache(q, self.told(call, "kv"), self.scale, mask_bt=mask_bt, **forms)
        else:
            forms |= {"kernel": self.step_kernel, "scale": self.scale}
            y_bhe, own = next_attention(q, k, v, state.cache, mask_bt=mask_bt, **forms)
            self.tell(call, "kv", own)
        return self._out(y_bhe, gate), AttentionState(own, conv, next_position(state.position))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values side by side; and the gate."""
        y = self.qkv_proj(x)
        if not self.widths.gate:
            return y, None
        qkv, n = y.split([self.widths.qkv, self.widths.gate], dim=-1)
        return qkv, n

    def _heads(self, qkv_bld: Tensor, start: int, call: Call | None) -> Heads:
        """Queries, and keys and values: own ones, told to whom reads them, or those of the layer read."""
        q, k, v = self._own_heads(qkv_bld, start)
        if self.spec.kv_from:
            k, v = self.told(call, "kv")
        else:
            self.tell(call, "kv", (k, v))
        return q, k, v

    def _own_heads(self, qkv_bld: Tensor, start: int | Tensor) -> Heads:
        """Projected features -> queries, keys and values a head, normed and rotated (no heads: not own)."""
        q, k, v = qkv_bld.split(self.widths[:3], dim=-1)
        if self.norm_full:
            q, k = self._normed(q, k)
        q, k, v = (
            t.unflatten(-1, (t.shape[-1] // dim, dim)).transpose(1, 2)
            for t, dim in ((q, self.head_dim), (k, self.head_dim), (v, self.value_dim))
        )
        if not self.norm_full:
            q, k = self._normed(q, k)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q if self.q_norm is None else self.q_norm(q), k if self.k_norm is None else self.k_norm(k)

    def _attended(
        self, q_bhle: Tensor, k_bgle: Tensor, v_bgle: Tensor, gate_bln: Tensor | None, call: Call | None
    ) -> Tensor:
        y_bhle = causal_attention(
            q_bhle,
            k_bgle,
            v_bgle,
            scale=self.scale,
            window=self.window,
            kernels=self.kernels,
            mask_bl=None if call is None else call.mask,
            softcap=self.softcap,
            sinks_h=self.sinks,
        )
        return self._out(y_bhle.transpose(1, 2), gate_bln)

    def _out(self, y_he: Tensor, gate_n: Tensor | None) -> Any:
        """Heads (..., h, e) -> gated, side by side, projected."""
        if gate_n is not None:
            y_he = y_he * gate_n.sigmoid().view(*y_he.shape[:-1], -1)
        y_q = y_he.flatten(-2)
        return y_q if self.out_proj is None else self.out_proj(y_q)
