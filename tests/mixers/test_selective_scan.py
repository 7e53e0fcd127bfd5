"""The blocked scan against the recurrence as written.

Shape suffixes: b batch, l length, i channels, n state size.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers.selective_scan import selective_scan, selective_scan_reference
from mixers.test_ssd import assert_near, run


def arguments(
    batch: int,
    length: int,
    channels: int = 3,
    n: int = 5,
    *,
    dt: float = 0.1,
    A: float = 16.0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """u, dt, A, B, C; step sizes about `dt`, decay rates up to `A`."""
    g = torch.Generator().manual_seed(42)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    dt_bli = dt * torch.rand(batch, length, channels, generator=g, dtype=dtype)
    A_in = -A * torch.rand(channels, n, generator=g, dtype=dtype)
    u, B, C = normal(batch, length, channels), *(normal(batch, length, n) for _ in "BC")
    return [t.requires_grad_() for t in (u, dt_bli, A_in, B, C)]


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 63, 64, 65, 100])
@pytest.mark.parametrize(("batch", "channels", "n"), [(1, 1, 1), (2, 3, 5), (3, 17, 16)])
def test_blocked_scan_is_the_recurrence(length: int, batch: int, channels: int, n: int) -> None:
    tensors = arguments(batch, length, channels, n)
    assert_near(run(selective_scan, tensors), run(selective_scan_reference, tensors), 1e-11)


@settings(max_examples=40)
@given(length=st.integers(1, 40), block=st.integers(1, 50), batch=st.integers(1, 3))
def test_any_block_gives_the_same(length: int, block: int, batch: int) -> None:
    tensors = arguments(batch, length)
    assert_near(run(selective_scan, tensors, block=block), run(selective_scan_reference, tensors), 1e-11)


def test_inputs_of_any_strides() -> None:
    tensors = [t.detach().mT.contiguous().mT.requires_grad_() for t in arguments(2, 37)]
    assert not tensors[0].is_contiguous()
    assert_near(run(selective_scan, tensors), run(selective_scan_reference, tensors), 1e-11)


@pytest.mark.parametrize("read", [0, 1], ids=["outputs", "state"])
def test_gradients_where_a_loss_reads_one_result_only(read: int) -> None:
    tensors = arguments(2, 37)
    asked = [0, 1, 2, 3] if read else [0, 1, 2, 3, 4]

    def gradients(scan: object) -> tuple[Tensor, ...]:
        assert callable(scan)
        loss = scan(*tensors)[read].square().sum()
        return torch.autograd.grad(loss, [tensors[i] for i in asked])

    for found, truth in zip(gradients(selective_scan), gradients(selective_scan_reference), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [64, 600])
def test_float32_is_as_exact_as_float32_allows(length: int) -> None:
    wide = arguments(2, length)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    found = tuple(t.double() for t in run(selective_scan, narrow))
    assert_near(found, run(selective_scan_reference, wide), 2e-5)


@pytest.mark.parametrize(("dt", "A"), [(1e4, 1e3), (1e3, 1e-6), (1e-8, 1e-8), (50.0, 16.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_step_sizes_stay_finite(dt: float, A: float, dtype: torch.dtype) -> None:
    tensors = arguments(1, 130, dt=dt, A=A, dtype=dtype)
    found = run(selective_scan, tensors)
    assert all(t.isfinite().all() for t in found)
    assert_near(found, run(selective_scan_reference, tensors), 1e-10 if dtype == torch.float64 else 1e-4)


def test_a_long_sequence_in_float32_stays_finite() -> None:
    """Decays multiply to far below the smallest number: a scan by quotients of them would be lost."""
    tensors = arguments(1, 2048, dt=0.5, dtype=torch.float32)
    assert all(t.isfinite().all() for t in run(selective_scan, tensors))


def test_a_step_of_zero_neither_decays_nor_adds() -> None:
    u, dt, A, B, C = (t.detach() for t in arguments(1, 100))
    _, state = selective_scan(u[:, :70], dt[:, :70], A, B[:, :70], C[:, :70])
    dt[:, 70:] = 0
    _, later = selective_scan(u, dt, A, B, C)
    torch.testing.assert_close(later, state, rtol=1e-12, atol=1e-14)


def test_gradients_by_finite_differences() -> None:
    tensors = arguments(1, 5, channels=2, n=2)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, block=2), tensors)


def test_the_backward_pass_keeps_one_state_a_block() -> None:
    batch, length, channels, n = 2, 128, 64, 16
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*arguments(batch, length, channels, n))
    assert max(kept) == batch * (length // 16 + 1) * channels * n
