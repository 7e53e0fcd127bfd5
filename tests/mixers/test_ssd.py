"""The chunked scan against the recurrence as written.

Shape suffixes: b batch, l length, h heads, p head_dim, g groups, n state size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers import ssd
from archsearch.mixers.blocks import blocks
from archsearch.mixers.ssd import ssd_chunked, ssd_reference

Scan = Callable[..., tuple[Tensor, Tensor]]


def arguments(
    batch: int,
    length: int,
    heads: int,
    groups: int,
    *,
    head_dim: int = 3,
    n: int = 5,
    dt: float = 0.1,
    A: float = 4.0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """x, dt, A, B, C; step sizes about `dt`, decay rates up to `A`."""
    g = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    dt_blh = dt * torch.rand(batch, length, heads, generator=g, dtype=dtype)
    A_h = -A * torch.rand(heads, generator=g, dtype=dtype)
    x, B, C = normal(batch, length, heads, head_dim), *(normal(batch, length, groups, n) for _ in "BC")
    return [t.requires_grad_() for t in (x, dt_blh, A_h, B, C)]


def run(scan: Scan, tensors: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    """y, the last state, and the gradients of a loss that reads both."""
    y, state = scan(*tensors, **options)
    weigh_y = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    weigh_state = torch.linspace(1, -2, state.numel(), dtype=y.dtype).view_as(state)
    loss = (y * weigh_y).sum() + (state * weigh_state).sum()
    return y, state, *torch.autograd.grad(loss, tensors)


def assert_near(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("y", "state", "dx", "ddt", "dA", "dB", "dC"), found, truth, strict=True):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 129])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 1), (4, 2), (6, 6)])
def test_chunked_scan_is_the_recurrence(length: int, heads: int, groups: int) -> None:
    tensors = arguments(2, length, heads, groups)
    assert_near(run(ssd_chunked, tensors), run(ssd_reference, tensors), 1e-10)


@settings(max_examples=40)
@given(
    length=st.integers(1, 40), chunk=st.integers(1, 50), groups=st.integers(1, 3), shared=st.integers(1, 3)
)
def test_any_chunk_gives_the_same(length: int, chunk: int, groups: int, shared: int) -> None:
    tensors = arguments(1, length, groups * shared, groups)
    assert_near(run(ssd_chunked, tensors, chunk=chunk), run(ssd_reference, tensors), 1e-10)
    truth = ssd_reference(*tensors)[0]
    torch.testing.assert_close(ssd_chunked(*tensors, chunk=chunk, wants_state=False)[0], truth)


@pytest.mark.parametrize("length", [64, 150])
def test_float32_is_as_exact_as_float32_allows(length: int) -> None:
    wide = arguments(2, length, 4, 2)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    found = tuple(t.double() for t in run(ssd_chunked, narrow))
    assert_near(found, run(ssd_reference, wide), 2e-5)


@pytest.mark.parametrize(("dt", "A"), [(1e4, 1e3), (1e3, 1e-6), (1e-8, 1e-8), (50.0, 16.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_step_sizes_stay_finite(dt: float, A: float, dtype: torch.dtype) -> None:
    tensors = arguments(1, 130, 2, 1, dt=dt, A=A, dtype=dtype)
    found = run(ssd_chunked, tensors)
    assert all(t.isfinite().all() for t in found)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    for a, b in zip(found[:2], ssd_reference(*tensors), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("elements", [1, 40, 100, 1 << 18])
@pytest.mark.parametrize("reads", ["y", "state", "both", "y alone"])
def test_blocks_of_any_size_with_a_skip(elements: int, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only one result is read: the other has no gradient then; and where no state is wanted."""
    monkeypatch.setattr(ssd, "blocks", lambda t: blocks(t, elements))
    tensors = arguments(3, 23, 4, 2)
    D_h = torch.linspace(-1, 2, 4, dtype=torch.float64, requires_grad=True)
    leaves = [*tensors, D_h]
    wanted = reads != "y alone"

    def results(y: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        loss = torch.zeros((), dtype=y.dtype)
        loss = loss + (y.sin().sum() if reads != "state" else 0)
        loss = loss + (state.cos().sum() if reads in ("state", "both") else 0)
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return y, *([state] if wanted else []), *found

    x, dt, A, B, C = tensors
    found = ssd_chunked(x, dt, A, B, C, D_h, chunk=5, wants_state=wanted)
    assert wanted or found[1].numel() == 0
    y, state = ssd_reference(*tensors)
    for a, b in zip(results(*found), results(y + D_h[:, None] * x, state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_large_skip_costs_the_rates_no_digits() -> None:
    """With small steps most of y is D x, which has no part in the gradients of dt and A."""
    wide = arguments(2, 300, 4, 2, head_dim=16, n=16, dt=0.005)
    D_h = torch.full((4,), 30.0, dtype=torch.float64)
    dy = torch.randn(2, 300, 4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    rates = torch.autograd.grad(ssd_reference(*wide)[0], wide[1:3], dy)
    found = torch.autograd.grad(ssd_chunked(*narrow, D_h.float())[0], narrow[1:3], dy.float())
    for a, b in zip(found, rates, strict=True):
        assert (a - b).norm() <= 2e-6 * b.norm()


def test_a_step_of_zero_neither_decays_nor_adds() -> None:
    x, dt, A, B, C = (t.detach() for t in arguments(1, 100, 2, 1))
    _, state = ssd_chunked(x[:, :70], dt[:, :70], A, B[:, :70], C[:, :70])
    dt[:, 70:] = 0
    _, later = ssd_chunked(x, dt, A, B, C)
    torch.testing.assert_close(later, state, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences() -> None:
    tensors = arguments(1, 5, 2, 1, head_dim=2, n=2)
    assert torch.autograd.gradcheck(lambda *t: ssd_chunked(*t, chunk=2), tensors)
