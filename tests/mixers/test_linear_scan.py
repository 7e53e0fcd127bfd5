"""The blocked linear recurrence and its gradient against the recurrence as written.

Shape suffixes: b batch, l length, c channels.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers.linear_scan import (
    BLOCK_ELEMENTS,
    linear_scan_reference,
    scan_,
    scan_gradient_,
    time_blocks,
)


def arguments(length: int, *, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Decays in [low, high], and inputs."""
    g = torch.Generator().manual_seed(5)
    a_blc = torch.rand(2, length, 3, generator=g, dtype=torch.float64) * (high - low) + low
    return a_blc, torch.randn(2, length, 3, generator=g, dtype=torch.float64)


def blocked(a_blc: Tensor, x_blc: Tensor, tokens: int) -> Tensor:
    """Every h, scanned in blocks of so many tokens."""
    h_blc, h_bc = x_blc.clone(), None
    for start in range(0, a_blc.shape[1], tokens):
        h_bc = scan_(a_blc[:, start : start + tokens], h_blc[:, start : start + tokens], h_bc)
    return h_blc


def blocked_gradient(a_blc: Tensor, dh_blc: Tensor, tokens: int) -> Tensor:
    """The gradient of x, from the last block to the first."""
    dx_blc, after_bc = dh_blc.clone(), None
    for start in reversed(range(0, a_blc.shape[1], tokens)):
        block = slice(start, start + tokens)
        after_bc = scan_gradient_(a_blc[:, block], dx_blc[:, block], after_bc)
    return dx_blc


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 100])
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
def test_blocks_are_the_recurrence_both_ways(length: int, tokens: int) -> None:
    a_blc, x_blc = (t.requires_grad_() for t in arguments(length))
    truth_blc = linear_scan_reference(a_blc, x_blc)
    dh_blc = torch.linspace(-1, 2, truth_blc.numel(), dtype=truth_blc.dtype).view_as(truth_blc)
    da_blc, dx_blc = torch.autograd.grad((truth_blc * dh_blc).sum(), (a_blc, x_blc))
    with torch.no_grad():
        h_blc = blocked(a_blc, x_blc, tokens)
        g_blc = blocked_gradient(a_blc, dh_blc, tokens)
        before_blc = torch.cat([torch.zeros_like(h_blc[:, :1]), h_blc[:, :-1]], dim=1)
    torch.testing.assert_close(h_blc, truth_blc, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_blc, dx_blc, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_blc * before_blc, da_blc, rtol=1e-12, atol=1e-12)


def test_three_tokens_by_hand() -> None:
    a_blc, x_blc = (torch.tensor(v).view(1, 3, 1) for v in ([9.0, 0.5, 0.25], [1.0, 2.0, 3.0]))
    h_blc, dx_blc = x_blc.clone(), torch.ones(1, 3, 1)
    scan_(a_blc, h_blc, None)
    scan_gradient_(a_blc, dx_blc, None)
    assert h_blc.flatten().tolist() == [1.0, 2.5, 3.625]
    assert dx_blc.flatten().tolist() == [1.625, 1.25, 1.0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, 1.0), (1e-30, 1e-20)])
def test_extreme_decays_are_exact(low: float, high: float) -> None:
    a_blc, x_blc = arguments(300, low=low, high=high)
    truth_blc = linear_scan_reference(a_blc, x_blc)
    torch.testing.assert_close(blocked(a_blc, x_blc, 64), truth_blc, rtol=1e-13, atol=1e-13)


@given(length=st.integers(1, 10_000), elements=st.integers(1, 3 * BLOCK_ELEMENTS))
def test_blocks_cover_every_token_once_and_fit(length: int, elements: int) -> None:
    blocks = time_blocks(length, elements)
    assert [t for block in blocks for t in range(block.start, block.stop)] == list(range(length))
    assert all((block.stop - block.start) * elements <= max(BLOCK_ELEMENTS, elements) for block in blocks)
