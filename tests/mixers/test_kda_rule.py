"""The chunked delta rule with a decay a channel against the recurrence as written.

Shape suffixes: b batch, l length, h heads, k key_dim, v value_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers.delta_rule import gated_delta_chunked
from archsearch.mixers.kda_rule import kda_chunked, kda_reference

Scan = Callable[..., tuple[Tensor, Tensor]]


def arguments(
    batch: int,
    length: int,
    heads: int,
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

    def normal(width: int) -> Tensor:
        return torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64)

    def uniform(*width: int) -> Tensor:
        return torch.rand(batch, length, heads, *width, generator=generator, dtype=torch.float64)

    q, k, v = normal(key_dim), normal(key_dim), normal(value_dim)
    k = torch.nn.functional.normalize(k + alike * k[:, :1], dim=-1)
    return [t.to(dtype).requires_grad_() for t in (q, k, v, -decay * uniform(key_dim), beta * uniform())]


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
    """The paper's form: S_t = (I - beta k k^T) diag(alpha) S_{t-1} + beta k v^T, and o = S^T q."""
    q, k, v, g, beta = arguments(1, 6, 2)
    o, state = kda_reference(q, k, v, g, beta)
    for h in range(2):
        S = torch.zeros(5, 3, dtype=torch.float64)
        for t in range(6):
            kt, strength = k[0, t, h], beta[0, t, h]
            keep = torch.eye(5, dtype=torch.float64) - strength * torch.outer(kt, kt)
            S = keep @ torch.diag(g[0, t, h].exp()) @ S + strength * torch.outer(kt, v[0, t, h])
            torch.testing.assert_close(o[0, t, h], S.T @ q[0, t, h], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state[0, h], S, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 100, 129])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("decay", [0.2, 30.0])
def test_chunked_scan_is_the_recurrence(length: int, heads: int, decay: float) -> None:
    tensors = arguments(2, length, heads, decay=decay)
    assert_near(run(kda_chunked, tensors), run(kda_reference, tensors), 1e-10)


@settings(max_examples=40)
@given(length=st.integers(1, 40), chunk=st.sampled_from([1, 2, 4, 8, 16, 32, 64]), heads=st.integers(1, 3))
def test_any_chunk_gives_the_same(length: int, chunk: int, heads: int) -> None:
    tensors = arguments(1, length, heads)
    assert_near(run(kda_chunked, tensors, chunk=chunk), run(kda_reference, tensors), 1e-10)


@pytest.mark.parametrize("length", [40, 150])
@pytest.mark.parametrize("reads", ["o", "state"])
def test_gradients_where_only_one_result_is_read(length: int, reads: str) -> None:
    tensors = arguments(2, length, 2)

    def gradients(scan: Scan) -> tuple[Tensor, ...]:
        o, state = scan(*tensors)
        loss = (o if reads == "o" else state).sin().sum()
        return torch.autograd.grad(loss, tensors, materialize_grads=True)

    for a, b in zip(gradients(kda_chunked), gradients(kda_reference), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max().clamp_min(1e-3)


def test_equal_decays_of_all_channels_are_the_gated_delta_rule() -> None:
    q, k, v, g, beta = arguments(2, 100, 2)
    g = g[..., :1].detach()
    found = kda_chunked(q, k, v, g.expand_as(k), beta)
    for a, b in zip(found, gated_delta_chunked(q, k, v, g[..., 0], beta), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [64, 150])
@pytest.mark.parametrize("alike", [0.0, 100.0], ids=["apart", "alike"])
def test_float32_is_as_exact_as_float32_allows(length: int, alike: float) -> None:
    wide = arguments(2, length, 3, key_dim=32, value_dim=16, alike=alike)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    found = tuple(t.double() for t in run(kda_chunked, narrow))
    assert_near(found, run(kda_reference, wide), 5e-5)


@pytest.mark.parametrize("decay", [0.0, 1e-8, 5.0, 300.0, 1e6])
@pytest.mark.parametrize(("beta", "alike"), [(0.0, 0.0), (1.0, 1e6), (2.0, 1e6), (2.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extremes_stay_finite_and_exact(decay: float, beta: float, alike: float, dtype: torch.dtype) -> None:
    tensors = arguments(1, 130, 2, decay=decay, beta=beta, alike=alike, dtype=dtype)
    found = run(kda_chunked, tensors)
    assert all(t.isfinite().all() for t in found)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    truth = run(kda_reference, wide)
    assert_near(tuple(t.double() for t in found), truth, 1e-9 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize("forgotten", [-1e4, float("-inf")])
def test_channels_that_forget_all_beside_channels_that_keep_all(forgotten: float) -> None:
    """exp(a_i) and exp(-a_j) apart would be 0 and infinity in half of the channels, with any reference."""
    q, k, v, _, beta = arguments(1, 200, 2, key_dim=6, dtype=torch.float32)
    keeps = torch.rand(k.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    g = torch.where(keeps, 0.0, forgotten).requires_grad_()
    found = run(kda_chunked, [q, k, v, g, beta])
    assert all(t.isfinite().all() for t in found)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v, g, beta)]
    truth = list(run(kda_reference, wide))
    if forgotten == float("-inf"):
        truth[5] = truth[5].nan_to_num()  # 0 times infinity is what autograd makes of it
    assert_near(tuple(t.double() for t in found), tuple(truth), 2e-4)


def test_strong_decays_lose_no_digits_of_weak_ones() -> None:
    """One token wipes the state: what follows it is as exact as if nothing had been before."""
    q, k, v, g, beta = (t.detach() for t in arguments(1, 64, 1, decay=0.01, dtype=torch.float32))
    g[:, 20] = -1e7
    o, state = kda_chunked(q, k, v, g, beta)
    o_after, state_after = kda_reference(*(t[:, 20:].double() for t in (q, k, v, g, beta)))
    assert (o[:, 20:] - o_after).abs().max() <= 2e-6 * o_after.abs().max()
    assert (state - state_after).abs().max() <= 2e-6 * state_after.abs().max()


def test_a_token_of_no_strength_and_no_decay_changes_nothing() -> None:
    q, k, v, g, beta = (t.detach() for t in arguments(1, 100, 2))
    _, state = kda_chunked(q[:, :70], k[:, :70], v[:, :70], g[:, :70], beta[:, :70])
    g[:, 70:], beta[:, 70:] = 0, 0
    _, later = kda_chunked(q, k, v, g, beta)
    torch.testing.assert_close(later, state, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences() -> None:
    tensors = arguments(1, 5, 2, key_dim=2, value_dim=2)
    assert torch.autograd.gradcheck(lambda *t: kda_chunked(*t, chunk=2), tensors)
