"""Merges as modules: the branches of a parallel block -> one stream.

Shape suffixes: b batch, l length, d d_model, w width of a branch's features, k branches, h heads,
g key/value heads, e head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archsearch.mixers.attend import cached_attention_kernel, causal_attention, next_attention
from archsearch.mixers.base import Call, Surroundings, init_linear
from archsearch.mixers.cache import KvCache, last_tokens
from archsearch.mixers.norms import RMSNorm
from archsearch.spec import merges as specs


class MergeModule(nn.Module):
    """Norms and scales of the branches, then `combine`, then the projection where the merge owns one.

    All merges but cross-attention look at one token at a time and have no state. Shapes: a list of
    (..., width) features and the block's normed input (..., d_model) -> (..., d_model).
    """

    def __init__(self, spec: specs.Merge, widths: tuple[int, ...], around: Surroundings):
        super().__init__()
        self.spec = spec
        self.norms: nn.ModuleList | None = None
        if spec.norm:
            groups = spec.heads if isinstance(spec, specs.NormedMean) else 1
            self.norms = nn.ModuleList(RMSNorm(width, around.eps, groups) for width in widths)
        self.scales: nn.ParameterList | None = None
        if spec.scale != "none":
            sizes = [1 if spec.scale == "scalar" else width for width in widths]
            self.scales = nn.ParameterList(torch.ones(size) for size in sizes)
        self.out_proj: nn.Linear | None = None
        if spec.projects():
            self.out_proj = nn.Linear(spec.out_width(widths), around.d_model, bias=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.out_proj is not None:
            init_linear(self.out_proj, generator)

    def prepared(self, branches: list[Tensor]) -> list[Tensor]:
        if self.norms is not None:
            branches = [norm(b) for norm, b in zip(self.norms, branches, strict=True)]
        if self.scales is not None:
            branches = [scale * b for scale, b in zip(self.scales, branches, strict=True)]
        return branches

    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, branches: list[Tensor], x: Tensor, call: Call | None = None) -> Tensor:
        y = self.combine(self.prepared(branches), x)
        return y if self.out_proj is None else self.out_proj(y)

    def prefill(self, branches: list[Tensor], x: Tensor, call: Call | None = None) -> tuple[Tensor, Any]:
        return self(branches, x, call), ()

    def step(
        self, branches: list[Tensor], x: Tensor, state: Any, call: Call | None = None
    ) -> tuple[Tensor, Any]:
        return self(branches, x, call), ()


class SumMerge(MergeModule):
    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        total = branches[0]
        for branch in branches[1:]:
            total = total + branch
        return total


class MeanMerge(SumMerge):
    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        return super().combine(branches, x) / len(branches)


class SubtractMerge(MergeModule):
    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        return branches[0] - branches[1]


class ConcatMerge(MergeModule):
    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        return torch.cat(branches, dim=-1)


class GateMerge(MergeModule):
    spec: specs.Gate

    def __init__(self, spec: specs.Gate, widths: tuple[int, ...], around: Surroundings):
        super().__init__(spec, widths, around)
        self.gate_proj: nn.Linear | None = None
        if spec.by == "token":
            self.gate_proj = nn.Linear(around.d_model, len(widths), bias=False)
        else:
            shape = (len(widths),) if spec.by == "scalar" else (len(widths), widths[0])
            self.logits = nn.Parameter(torch.zeros(shape))

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        if self.gate_proj is not None:
            init_linear(self.gate_proj, generator)

    def combine(self, branches: list[Tensor], x: Tensor) -> Tensor:
        if self.gate_proj is not None:
            shares = self.gate_proj(x).softmax(-1).unsqueeze(-1).unbind(-2)
        else:
            shares = self.logits.softmax(0).unbind(0)
        total = branches[0] * shares[0]
        for share, branch in zip(shares[1:], branches[1:], strict=True):
            total = total + share * branch
        return total


class CrossAttentionMerge(MergeModule):
    """b_q + W_o attention(W_q b_q, W_k b_kv, W_v b_kv); its state is the asked branch's keys and values."""

    spec: specs.CrossAttention

    def __init__(self, spec: specs.CrossAttention, widths: tuple[int, ...], around: Surroundings):
        super().__init__(spec, widths, around)
        d_model = around.d_model
        assert spec.heads is not None, "resolve the spec first"
        assert spec.kv_heads is not None
        assert isinstance(spec.query, int)
        self.asking, self.asked = spec.query, 1 - spec.query
        self.head_dim = d_model // spec.heads
        self.kv_width = self.head_dim * spec.kv_heads
        self.scale, self.kernels = self.head_dim**-0.5, around.kernels
        self.step_kernel = cached_attention_kernel(
            around.kernels, key_width=self.head_dim, value_width=self.head_dim
        )
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.kv_proj = nn.Linear(d_model, 2 * self.kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        for linear in (self.q_proj, self.kv_proj, self.o_proj):
            init_linear(linear, generator)

    def forward(self, branches: list[Tensor], x: Tensor, call: Call | None = None) -> Tensor:
        return self.prefill(branches, x, call)[0]

    def prefill(self, branches: list[Tensor], x: Tensor, call: Call | None = None) -> tuple[Tensor, KvCache]:
        q, k, v = self._heads(branches)
        y = causal_attention(
            q,
            k,
            v,
            scale=self.scale,
            window=self.spec.window,
            kernels=self.kernels,
            mask_bl=None if call is None else call.mask,
        )
        recordable = self.step_kernel.of(k) is not None
        cache = last_tokens(k.contiguous(), v.contiguous(), self.spec.window, recordable=recordable)
        return self._out(y.transpose(1, 2).flatten(2), branches), cache

    def step(
        self, branches: list[Tensor], x: Tensor, state: KvCache, call: Call | None = None
    ) -> tuple[Tensor, KvCache]:
        q, k, v = (t[:, :, 0] for t in self._heads([branch[:, None] for branch in branches]))
        mask_bt = None if call is None else call.mask
        forms: dict[str, Any] = {"kernel": self.step_kernel, "scale": self.scale, "mask_bt": mask_bt}
        y_bhe, cache = next_attention(q, k, v, state, **forms)
        return self._out(y_bhe.flatten(1), branches), cache

    def _heads(self, branches: list[Tensor]) -> tuple[Tensor, ...]:
        prepared = self.prepared(branches)
        q_bld = self.q_proj(prepared[self.asking])
        k_blw, v_blw = self.kv_proj(prepared[self.asked]).split(self.kv_width, dim=-1)
        return tuple(t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q_bld, k_blw, v_blw))

    def _out(self, y: Tensor, branches: list[Tensor]) -> Tensor:
        update = self.o_proj(y)
        return branches[self.asking] + update if self.spec.residual else update


MERGE_MODULES: dict[str, type[MergeModule]] = {
    "sum": SumMerge,
    "mean": MeanMerge,
    "subtract": SubtractMerge,
    "concat": ConcatMerge,
    "gate": GateMerge,
    "normed_mean": MeanMerge,
    "cross_attention": CrossAttentionMerge,
}
"""Merge kind -> the module that computes it."""
