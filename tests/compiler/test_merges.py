"""Every merge against its formula, written out.

Shape suffixes: b batch, l length, d width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.building import inputs, shaken
from torch import Tensor

from archsearch.compiler.merges import MERGE_MODULES
from archsearch.mixers.base import Surroundings
from archsearch.spec.merges import MERGES

WIDTH = 64
X = inputs(2, 6, WIDTH)
BRANCHES = [inputs(2, 6, WIDTH, seed=i + 1) for i in range(3)]


def merge_of(kind: str, branches: int = 2, **fields: Any) -> Any:
    widths = (WIDTH,) * branches
    spec = (
        MERGES[kind].model_validate(fields).resolve(WIDTH, widths, tuple({f"b{i}"} for i in range(branches)))
    )
    module = MERGE_MODULES[kind](spec, widths, Surroundings(WIDTH, 1e-3))
    module.reset_parameters(torch.Generator().manual_seed(0))
    return shaken(module)


def rms(x: Tensor, weight: Tensor, heads: int = 1) -> Tensor:
    parts = x.unflatten(-1, (heads, -1))
    return (parts * (parts.square().mean(-1, keepdim=True) + 1e-3).rsqrt()).flatten(-2) * weight


def check(module: Any, branches: list[Tensor], expected: Tensor) -> None:
    torch.testing.assert_close(module(branches, X), expected, rtol=1e-11, atol=1e-11)


def test_sum_mean_subtract() -> None:
    a, b, c = BRANCHES
    check(merge_of("sum", 3), BRANCHES, a + b + c)
    check(merge_of("mean", 3), BRANCHES, (a + b + c) / 3)
    check(merge_of("subtract"), [a, b], a - b)


def test_norm_then_scale_then_combine() -> None:
    for scale in ("scalar", "vector"):
        module = merge_of("sum", norm=True, scale=scale)
        parts = [
            rms(branch, norm.weight) * factor
            for branch, norm, factor in zip(BRANCHES, module.norms, module.scales, strict=False)
        ]
        assert len(parts) == 2
        check(module, BRANCHES[:2], parts[0] + parts[1])


@pytest.mark.parametrize("kind", ["sum", "concat"])
def test_the_shared_projection_comes_last(kind: str) -> None:
    module = merge_of(kind, projection="shared")
    a, b = BRANCHES[:2]
    together = a + b if kind == "sum" else torch.cat([a, b], -1)
    check(module, [a, b], together @ module.out_proj.weight.T)


def test_gates_are_shares_that_sum_to_one() -> None:
    stacked = torch.stack(BRANCHES)
    scalar = merge_of("gate", 3)
    shares = scalar.logits.softmax(0)
    check(scalar, BRANCHES, (shares[:, None, None, None] * stacked).sum(0))
    vector = merge_of("gate", 3, by="vector")
    check(vector, BRANCHES, (vector.logits.softmax(0)[:, None, None] * stacked).sum(0))
    token = merge_of("gate", 3, by="token")
    shares_bln = (X @ token.gate_proj.weight.T).softmax(-1)
    check(token, BRANCHES, sum(shares_bln[..., i, None] * BRANCHES[i] for i in range(3)))


@pytest.mark.parametrize("by", ["scalar", "vector"])
def test_gates_begin_as_the_mean(by: str) -> None:
    spec = MERGES["gate"].model_validate({"by": by})
    module = MERGE_MODULES["gate"](spec, (WIDTH, WIDTH), Surroundings(WIDTH)).double()
    check(module, BRANCHES[:2], (BRANCHES[0] + BRANCHES[1]) / 2)


@pytest.mark.parametrize("heads", [1, 4])
def test_normed_mean(heads: int) -> None:
    module = merge_of("normed_mean", heads=heads)
    parts = [rms(b, n.weight, heads) for b, n in zip(BRANCHES, module.norms, strict=False)]
    check(module, BRANCHES[:2], (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("query", [0, 1])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("residual", [True, False])
def test_cross_attention(query: int, window: int | None, residual: bool) -> None:
    module = merge_of("cross_attention", query=query, heads=4, kv_heads=2, window=window, residual=residual)
    prepared = [rms(b, n.weight) for b, n in zip(BRANCHES, module.norms, strict=False)]
    q = prepared[query] @ module.q_proj.weight.T
    kv = prepared[1 - query] @ module.kv_proj.weight.T
    k, v = kv[..., :32], kv[..., 32:]
    answer = torch.zeros_like(q)
    for head in range(4):
        of_q, of_kv = slice(16 * head, 16 * head + 16), slice(16 * (head // 2), 16 * (head // 2) + 16)
        for t in range(6):
            seen = slice(0 if window is None else max(0, t - window + 1), t + 1)
            scores = torch.einsum("be,ble->bl", q[:, t, of_q], k[:, seen, of_kv]) / 4
            answer[:, t, of_q] = torch.einsum("bl,ble->be", scores.softmax(-1), v[:, seen, of_kv])
    expected = answer @ module.o_proj.weight.T
    check(module, BRANCHES[:2], expected + (BRANCHES[query] if residual else 0))
