"""The chunked gated delta rule against the recurrence as written.

Shape suffixes: b batch, l length, g key heads, h value heads, k key_dim, v value_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers.delta_rule import gated_delta_chunked, gated_delta_reference, unit_vectors

Scan = Callable[..., tuple[Tensor, Tensor]]


def arguments(
    batch: int,
    length: int,
    key_heads: int,
    value_heads: int,
    *,
    key_dim: int = 5,
    value_dim: int = 3,
    decay: float = 0.2,
    beta: float = 2.0,
    alike: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """q, k, v, g, beta; decays up to exp(-decay), strengths up to `beta`, keys `alike` one another."""
    generator = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(batch, length, value_heads, generator=generator, dtype=torch.float64)

    q, k = (normal(batch, length, key_heads, key_dim) for _ in "qk")
    k = torch.nn.functional.normalize(k + alike * k[:, :1], dim=-1)
    v = normal(batch, length, value_heads, value_dim)
    return [t.to(dtype).requires_grad_() for t in (q, k, v, -decay * uniform(), beta * uniform())]


def run(scan: Scan, tensors: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """o, the last state, and the gradients of a loss that reads both."""
    o, state = scan(*tensors, **options)
    weigh_o = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    weigh_state = torch.linspace(1, -2, state.numel(), dtype=o.dtype).view_as(state)
    loss = (o * weigh_o).sum() + (state * weigh_state).sum()
    return o, state, *torch.autograd.grad(loss, tensors)


def assert_near(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("o", "state", "dq", "dk", "dv", "dg", "dbeta"), found, truth, strict=False):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3), name


def test_recurrence_by_hand() -> None:
    """The paper's form, S_t = S_{t-1} alpha (I - beta k k^T) + beta v k^T with S (value, key), o = S q."""
    q, k, v, g, beta = arguments(1, 6, 1, 2)
    o, state = gated_delta_reference(q, k, v, g, beta)
    for h in range(2):
        S = torch.zeros(3, 5, dtype=torch.float64)
        for t in range(6):
            kt, strength = k[0, t, 0], beta[0, t, h]
            keep = torch.eye(5, dtype=torch.float64) - strength * torch.outer(kt, kt)
            S = S @ (g[0, t, h].exp() * keep) + strength * torch.outer(v[0, t, h], kt)
            torch.testing.assert_close(o[0, t, h], S @ q[0, t, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[0, h], S.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 100, 129])
@pytest.mark.parametrize(("key_heads", "value_heads"), [(1, 1), (2, 2), (1, 3), (2, 4)])
def test_chunked_scan_is_the_recurrence(length: int, key_heads: int, value_heads: int) -> None:
    tensors = arguments(2, length, key_heads, value_heads)
    assert_near(run(gated_delta_chunked, tensors), run(gated_delta_reference, tensors), 1e-10)


@settings(max_examples=40)
@given(
    length=st.integers(1, 40), chunk=st.integers(1, 50), key_heads=st.integers(1, 3), shared=st.integers(1, 3)
)
def test_any_chunk_gives_the_same(length: int, chunk: int, key_heads: int, shared: int) -> None:
    tensors = arguments(1, length, key_heads, key_heads * shared)
    assert_near(run(gated_delta_chunked, tensors, chunk=chunk), run(gated_delta_reference, tensors), 1e-10)


@pytest.mark.parametrize("length", [40, 150])
@pytest.mark.parametrize("reads", ["o", "state"])
def test_gradients_where_only_one_result_is_read(length: int, reads: str) -> None:
    tensors = arguments(2, length, 1, 2)

    def gradients(scan: Scan) -> tuple[Tensor, ...]:
        o, state = scan(*tensors)
        loss = (o if reads == "o" else state).sin().sum()
        return torch.autograd.grad(loss, tensors, materialize_grads=True)

    for a, b in zip(gradients(gated_delta_chunked), gradients(gated_delta_reference), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("length", [64, 150])
@pytest.mark.parametrize("alike", [0.0, 100.0], ids=["apart", "alike"])
def test_float32_is_as_exact_as_float32_allows(length: int, alike: float) -> None:
    wide = arguments(2, length, 2, 4, key_dim=32, value_dim=16, alike=alike)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    found = tuple(t.double() for t in run(gated_delta_chunked, narrow))
    assert_near(found, run(gated_delta_reference, wide), 5e-5)


@pytest.mark.parametrize("decay", [0.0, 1e-8, 5.0, 300.0, 1e6])
@pytest.mark.parametrize(("beta", "alike"), [(0.0, 0.0), (1.0, 1e6), (2.0, 1e6), (2.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extremes_stay_finite_and_exact(decay: float, beta: float, alike: float, dtype: torch.dtype) -> None:
    tensors = arguments(1, 130, 1, 2, decay=decay, beta=beta, alike=alike, dtype=dtype)
    found = run(gated_delta_chunked, tensors)
    assert all(t.isfinite().all() for t in found)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = run(gated_delta_reference, wide)
    assert_near(tuple(t.double() for t in found), truth, 1e-9 if dtype == torch.float64 else 2e-3)


def test_full_strength_at_every_token_reflects_without_growing() -> None:
    """beta 2 and one key: each token mirrors what is stored, which sums of powers could not resolve."""
    q, k, v, g, beta = (t.detach() for t in arguments(1, 512, 1, 1, alike=1e9, dtype=torch.float32))
    o, _ = gated_delta_chunked(q, k, v, 0 * g, 0 * beta + 2)
    truth, _ = gated_delta_reference(
        q.double(), k.double(), v.double(), 0 * g.double(), 0 * beta.double() + 2
    )
    assert (o - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_a_token_of_no_strength_and_no_decay_changes_nothing() -> None:
    q, k, v, g, beta = (t.detach() for t in arguments(1, 100, 1, 2))
    _, state = gated_delta_chunked(q[:, :70], k[:, :70], v[:, :70], g[:, :70], beta[:, :70])
    g[:, 70:], beta[:, 70:] = 0, 0
    _, later = gated_delta_chunked(q, k, v, g, beta)
    torch.testing.assert_close(later, state, rtol=1e-12, atol=1e-14)


def test_full_strength_without_decay_recalls_the_last_value_of_a_key() -> None:
    k_lk = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2]]
    v_lv = torch.arange(12.0, dtype=torch.float64).view(4, 3)
    one = torch.ones(1, 4, 1, dtype=torch.float64)
    _, state = gated_delta_chunked(
        k_lk[None, :, None], k_lk[None, :, None], v_lv[None, :, None], 0 * one, one
    )
    for key, written in ((0, 2), (1, 1), (2, 3)):
        torch.testing.assert_close(state[0, 0, key], v_lv[written])
    assert not state[0, 0, 3].any()


def test_gradients_by_finite_differences() -> None:
    tensors = arguments(1, 5, 1, 2, key_dim=2, value_dim=2)
    assert torch.autograd.gradcheck(lambda *t: gated_delta_chunked(*t, chunk=2), tensors)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_unit_vectors_by_hand_with_gradients(scale: float) -> None:
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0] = 0
    x.requires_grad_()
    truth = scale * x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    found = unit_vectors(x, scale)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(y.sin().sum() + y.sum(), x, retain_graph=True)[0] for y in (found, truth))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda t: unit_vectors(t, scale), x.detach()[1:].requires_grad_())
    assert unit_vectors(x.bfloat16()).dtype == torch.float32
