"""Short convolutions and norms against torch's own and against formulas written out.

Shape suffixes: b batch, l length, c channels, k kernel width, d width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from archsearch.mixers import norms, short_conv
from archsearch.mixers.blocks import blocks
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.norms import LayerNorm, RMSNorm
from archsearch.mixers.short_conv import ShortConv, shifted_conv


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=40)
@given(length=st.integers(1, 12), width=st.integers(2, 9), bias=st.booleans(), batch=st.integers(1, 3))
def test_short_conv_is_a_grouped_conv1d(length: int, width: int, bias: bool, batch: int) -> None:
    x_blc, weight_ck, dy_blc = random(batch, length, 5), random(5, width, seed=1), random(batch, length, 5)
    bias_c = random(5, seed=2) if bias else None
    leaves = [t.requires_grad_() for t in (x_blc, weight_ck, bias_c) if t is not None]
    padded_bcl = F.pad(x_blc.mT, (width - 1, 0))
    truth_blc = F.conv1d(padded_bcl, weight_ck[:, None], bias_c, groups=5).mT
    found_blc = shifted_conv(x_blc, weight_ck, bias_c)
    torch.testing.assert_close(found_blc, truth_blc, rtol=1e-12, atol=1e-12)
    found, truth = (torch.autograd.grad(y, leaves, dy_blc) for y in (found_blc, truth_blc))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(
    length=st.integers(1, 12),
    width=st.integers(2, 9),
    bias=st.booleans(),
    elements=st.sampled_from([1, 11, 23, 60]),
)
def test_short_conv_in_blocks_with_silu(length: int, width: int, bias: bool, elements: int) -> None:
    leaves = [random(3, length, 5), random(5, width, seed=1), *([random(5, seed=2)] if bias else [])]
    x_blc, weight_ck, *rest = (t.requires_grad_() for t in leaves)
    bias_c, dy_blc = rest[0] if bias else None, random(3, length, 5, seed=3)
    truth_blc = F.silu(F.conv1d(F.pad(x_blc.mT, (width - 1, 0)), weight_ck[:, None], bias_c, groups=5).mT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_conv, "blocks", lambda t: blocks(t, elements))
        found_blc = shifted_conv(x_blc, weight_ck, bias_c, silu=True)
        found = torch.autograd.grad(found_blc, leaves, dy_blc)
    truth = torch.autograd.grad(truth_blc, leaves, dy_blc)
    for a, b in zip((found_blc, *found), (truth_blc, *truth), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_short_conv_of_half_precision_input_is_of_the_weights_precision() -> None:
    x_blc = random(2, 7, 5).bfloat16().requires_grad_()
    weight_ck = random(5, 4, seed=1).float().requires_grad_()
    y_blc = shifted_conv(x_blc, weight_ck, None, silu=True)
    truth_blc = shifted_conv(x_blc.float(), weight_ck, None, silu=True)
    assert torch.equal(y_blc, truth_blc)
    found, truth = (torch.autograd.grad(y.sum(), [x_blc, weight_ck]) for y in (y_blc, truth_blc))
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_short_conv_state_is_the_last_inputs(length: int) -> None:
    conv = ShortConv(3, 4, bias=True, silu=True, kernels=Kernels())
    conv.reset_parameters(torch.Generator().manual_seed(0))
    conv.double()
    x_blc = random(2, length, 3)
    with torch.no_grad():
        y_blc, state_bkc = conv.prefill(x_blc)
        torch.testing.assert_close(y_blc, F.silu(shifted_conv(x_blc, conv.weight, conv.bias)))
    expected = torch.cat([torch.zeros(2, 3, 3, dtype=torch.float64), x_blc], dim=1)[:, -3:]
    assert torch.equal(state_bkc, expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 5, 12)], ids=str)
def test_rms_norm_by_hand_with_gradients(groups: int, shape: tuple[int, ...]) -> None:
    norm = RMSNorm(12, 1e-3, groups).double()
    with torch.no_grad():
        norm.weight.copy_(random(12, seed=1))
    x_d, dy_d = random(*shape).requires_grad_(), random(*shape, seed=3)
    parts = x_d.unflatten(-1, (groups, -1))
    truth_d = (parts / (parts.square().mean(-1, keepdim=True) + 1e-3).sqrt()).flatten(-2) * norm.weight
    found_d = norm(x_d)
    torch.testing.assert_close(found_d, truth_d, rtol=1e-12, atol=1e-12)
    leaves = [x_d, norm.weight]
    found, truth = (torch.autograd.grad(y, leaves, dy_d) for y in (found_d, truth_d))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (3, 5, 12), (2, 3, 4, 12)], ids=str)
@pytest.mark.parametrize("elements", [1, 50, 1 << 18])
def test_gated_norm_by_hand_with_gradients(
    norm_first: bool, groups: int, shape: tuple[int, ...], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "blocks", lambda t: blocks(t, elements))
    norm = RMSNorm(12, 1e-3, groups).double()
    with torch.no_grad():
        norm.weight.copy_(random(12, seed=1))
    x_d, dy_d = random(*shape).requires_grad_(), random(*shape, seed=3)
    # A part of a wider tensor, as a projection's outputs are.
    gate_d = random(*shape[:-1], 20, seed=4)[..., 5:17].requires_grad_()
    silu = gate_d / (1 + (-gate_d).exp())
    truth_d = norm(x_d) * silu if norm_first else norm(x_d * silu)
    found_d = norm.gated(x_d, gate_d, norm_first=norm_first)
    torch.testing.assert_close(found_d, truth_d, rtol=1e-12, atol=1e-12)
    leaves = [x_d, gate_d, norm.weight]
    found, truth = (torch.autograd.grad(y, leaves, dy_d) for y in (found_d, truth_d))
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm_first", [False, True])
def test_gated_norm_is_of_the_gates_dtype(norm_first: bool) -> None:
    norm = RMSNorm(8, 1e-5)
    x_d, gate_d = random(3, 8).float().requires_grad_(), random(3, 8, seed=1).bfloat16().requires_grad_()
    y_d = norm.gated(x_d, gate_d, norm_first=norm_first)
    truth_d = norm.gated(x_d, gate_d.float(), norm_first=norm_first)
    assert y_d.dtype == torch.bfloat16
    assert torch.equal(y_d, truth_d.bfloat16())
    for leaf, gradient in zip((x_d, gate_d), torch.autograd.grad(y_d.sum(), [x_d, gate_d]), strict=True):
        assert gradient.dtype == leaf.dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_step_norms_as_a_sequence_does(dtype: torch.dtype, unit_offset: bool) -> None:
    """Without gradients and for few numbers torch's own operations are the sooner ones."""
    norm = RMSNorm(12, 1e-3, unit_offset=unit_offset)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    norm.to(dtype)
    x_bd, gate_bd = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    of_sequence = norm(x_bd[:, None])[:, 0]
    gated = {first: norm.gated(x_bd[:, None], gate_bd[:, None], norm_first=first) for first in (False, True)}
    with torch.no_grad():
        torch.testing.assert_close(norm(x_bd), of_sequence.detach())
        assert norm(x_bd).dtype == dtype
        for first, expected_b1d in gated.items():
            found_bd = norm.gated(x_bd, gate_bd, norm_first=first)
            torch.testing.assert_close(found_bd, expected_b1d[:, 0].detach())


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_keep_the_dtype_and_survive_zeros_and_large_values(
    kind: type[nn.Module], dtype: torch.dtype
) -> None:
    norm: Any = kind(8, 1e-5).to(dtype)
    for x_d in (torch.zeros(3, 8), 1e4 * torch.ones(3, 8), 1e4 * random(3, 8).float()):
        x_d = x_d.to(dtype).requires_grad_()
        y_d = norm(x_d)
        y_d.sum().backward()
        assert y_d.dtype == dtype
        assert y_d.isfinite().all()
        assert x_d.grad is not None
        assert x_d.grad.isfinite().all()


def test_a_unit_offset_adds_one_to_the_weight() -> None:
    offset, plain = RMSNorm(8, 1e-3, unit_offset=True).double(), RMSNorm(8, 1e-3).double()
    x_d = random(4, 8)
    assert torch.equal(offset(x_d), plain(x_d))
    with torch.no_grad():
        offset.weight.copy_(random(8, seed=1))
        plain.weight.copy_(1 + offset.weight)
    assert torch.equal(offset(x_d), plain(x_d))


def test_layer_norm_by_hand() -> None:
    norm: Any = LayerNorm(8, 1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(random(8, seed=1))
        norm.bias.copy_(random(8, seed=2))
    x_d = random(4, 8)
    centred = x_d - x_d.mean(-1, keepdim=True)
    truth = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x_d), truth)
