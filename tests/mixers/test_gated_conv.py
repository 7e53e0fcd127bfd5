"""The gated short convolution against its definition.

Shape suffixes: b batch, l length, w inner width, p the three parts B, C, x side by side, k kernel width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.building import inputs, layer_of, mixer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers import linear_scan
from archsearch.mixers.gated_conv import gated_conv, gated_conv_reference

Conv = Callable[..., Tensor]


def arguments(batch: int, length: int, width: int, taps: int, *, bias: bool, scale: float = 1.0) -> list[Any]:
    """B, C and x side by side; the kernel; its bias or None."""
    g = torch.Generator().manual_seed(3)
    parts_blp = scale * torch.randn(batch, length, 3 * width, generator=g, dtype=torch.float64)
    weight_wk = torch.randn(width, taps, generator=g, dtype=torch.float64)
    bias_w = torch.randn(width, generator=g, dtype=torch.float64)
    return [parts_blp.requires_grad_(), weight_wk.requires_grad_(), bias_w.requires_grad_() if bias else None]


def run(conv: Conv, tensors: list[Any]) -> tuple[Tensor, ...]:
    """y, and the gradients of a loss that weighs each of its numbers differently."""
    y = conv(*tensors)
    loss = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()
    wanted = [t for t in tensors if t is not None]
    return y, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


def assert_near(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("y", "dparts", "dweight", "dbias"), found, truth, strict=False):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3), name
    assert len(found) == len(truth)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 100])
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize(("taps", "bias"), [(3, False), (3, True), (2, True), (8, False)])
def test_blocks_of_time_are_the_definition(
    length: int, tokens: int, taps: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_scan, "BLOCK_ELEMENTS", tokens * 2 * 5)
    tensors = arguments(2, length, 5, taps, bias=bias)
    assert_near(run(gated_conv, tensors), run(gated_conv_reference, tensors), 1e-12)


@settings(max_examples=30)
@given(batch=st.integers(1, 3), length=st.integers(1, 20), width=st.integers(1, 6), taps=st.integers(2, 9))
def test_any_shape_gives_the_same(batch: int, length: int, width: int, taps: int) -> None:
    tensors = arguments(batch, length, width, taps, bias=True)
    assert_near(run(gated_conv, tensors), run(gated_conv_reference, tensors), 1e-12)


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(gated_conv, arguments(2, 5, 3, 3, bias=True))


@pytest.mark.parametrize("scale", [1e-150, 1e100])
def test_extreme_inputs_stay_finite(scale: float) -> None:
    tensors = arguments(1, 70, 4, 3, bias=False, scale=scale)
    found = run(gated_conv, tensors)
    assert all(t.isfinite().all() for t in found)
    assert_near(found, run(gated_conv_reference, tensors), 1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_by_hand(bias: bool) -> None:
    mixer, x = mixer_of("gated_conv", {"width": 6, "bias": bias, "conv_bias": bias}), inputs(1, 7)
    with torch.no_grad():
        projected = x[0] @ mixer.in_proj.weight.T + (mixer.in_proj.bias if bias else 0)
        B, C, value = projected[:, :6], projected[:, 6:12], projected[:, 12:]
        padded = torch.cat([torch.zeros(2, 6, dtype=x.dtype), B * value])
        conv = torch.stack([(padded[t : t + 3].T * mixer.conv.weight).sum(1) for t in range(7)])
        truth = (C * (conv + (mixer.conv.bias if bias else 0))) @ mixer.out_proj.weight.T
        truth += mixer.out_proj.bias if bias else 0
        torch.testing.assert_close(mixer(x)[0], truth, rtol=1e-12, atol=1e-12)


def test_the_state_is_the_last_gated_inputs() -> None:
    mixer, x = mixer_of("gated_conv", {"width": 6, "d_conv": 4}), inputs(1, 9)
    with torch.no_grad():
        B, _, value = mixer.in_proj(x).chunk(3, dim=-1)
        assert torch.equal(mixer.prefill(x)[1].conv_bkw, (B * value)[:, -3:])
        short = mixer.prefill(x[:, :2])[1].conv_bkw
    assert not short[:, 0].any()
    torch.testing.assert_close(short[:, 1:], (B * value)[:, :2])


def test_costs_by_hand() -> None:
    layer = layer_of("gated_conv", {"width": 96, "bias": True, "conv_bias": True}, d_model=64)
    assert layer.params(64) == (64 * 288 + 288) + (96 * 3 + 96) + (96 * 64 + 64)
    assert layer.params(64, project=False) == (64 * 288 + 288) + (96 * 3 + 96)
    assert layer.flops(64, 1000) == 2 * 64 * 288 + 2 * 96 * 3 + 2 * 96 * 64
    assert layer.state_bytes(64, 1000, 2) == 96 * 2 * 2
