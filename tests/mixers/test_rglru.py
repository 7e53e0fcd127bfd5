"""The RG-LRU against the recurrence as written.

Shape suffixes: b batch, l length, c channels, h heads, t tokens of all sequences, j channels of a head's
gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from contract.building import inputs, layer_of, mixer_of
from torch import Tensor

from archsearch.mixers import linear_scan
from archsearch.mixers.base import Surroundings
from archsearch.mixers.rglru import RgLruMixer, rg_lru, rg_lru_reference
from archsearch.spec.errors import FieldError

Lru = Callable[[Tensor, Tensor, Tensor], Tensor]


def arguments(
    length: int,
    *,
    batch: int = 2,
    heads: int = 2,
    block: int = 3,
    gates: float = 1.0,
    decay: float = 0.95,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """x, gate inputs of size `gates`, and parameters around a = `decay`."""
    g = torch.Generator().manual_seed(11)
    x_blc = torch.randn(batch, length, heads * block, generator=g, dtype=torch.float64)
    gates_htj = gates * torch.randn(heads, batch * length, 2 * block, generator=g, dtype=torch.float64)
    param_c = torch.randn(heads * block, generator=g, dtype=torch.float64) * 0.3
    param_c += math.log(math.expm1(-math.log(decay)))
    return [t.to(dtype).requires_grad_() for t in (x_blc, gates_htj, param_c)]


def run(lru: Lru, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Every state, and the gradients of a loss that weighs each number differently, the last states more."""
    h_blc = lru(*tensors)
    weigh = torch.linspace(-1, 2, h_blc.numel(), dtype=h_blc.dtype).view_as(h_blc)
    loss = (h_blc * weigh).sum() + 3 * h_blc[:, -1].square().sum()
    return h_blc, *torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


def assert_near(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("h", "dx", "dgates", "dparam"), found, truth, strict=True):
        assert a.shape == b.shape, name
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-3), name


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 100])
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize(("heads", "block"), [(1, 6), (3, 2), (5, 1)])
def test_blocks_of_time_are_the_recurrence(
    length: int, tokens: int, heads: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_scan, "BLOCK_ELEMENTS", tokens * 2 * heads * block)
    tensors = arguments(length, heads=heads, block=block)
    assert_near(run(rg_lru, tensors), run(rg_lru_reference, tensors), 1e-11)


@pytest.mark.parametrize("decay", [1e-6, 0.5, 0.999, 0.999999])
def test_any_decay_is_exact(decay: float) -> None:
    tensors = arguments(130, decay=decay)
    assert_near(run(rg_lru, tensors), run(rg_lru_reference, tensors), 1e-9)


def test_float32_is_as_exact_as_float32_allows() -> None:
    wide = arguments(150)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    found = tuple(t.double() for t in run(rg_lru, narrow))
    assert_near(found, run(rg_lru_reference, wide), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("gates", "decay"), [(1e4, 0.5), (1e4, 0.999), (0.0, 1e-300), (1.0, 1 - 1e-7)])
def test_extreme_gates_and_decays_stay_finite(gates: float, decay: float, dtype: torch.dtype) -> None:
    tensors = arguments(130, gates=gates, decay=decay, dtype=dtype)
    found = run(rg_lru, tensors)
    assert all(t.isfinite().all() for t in found)
    truth = rg_lru_reference(*tensors)
    assert (found[0] - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(rg_lru, arguments(5, heads=2, block=2))


@pytest.mark.parametrize("heads", [1, 3])
def test_layer_by_hand(heads: int) -> None:
    """From the paper's equations, with Lambda = -recurrent_param; the first token's multiplier is 1."""
    mixer, u = mixer_of("rglru", {"width": 6, "heads": heads}), inputs(1, 9)[0]
    lru, block = mixer.rg_lru, 6 // heads
    with torch.no_grad():
        y = u @ mixer.linear_y.weight.T + mixer.linear_y.bias
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        padded = torch.cat([u.new_zeros(3, 6), u @ mixer.linear_x.weight.T + mixer.linear_x.bias])
        h, rows = u.new_zeros(6), []
        for t in range(9):
            x = (padded[t : t + 4].T * mixer.conv_1d.weight).sum(1) + mixer.conv_1d.bias
            i, r = u.new_zeros(6), u.new_zeros(6)
            for head in range(heads):
                part = slice(head * block, (head + 1) * block)
                i[part] = x[part] @ lru.input_gate_weight[head] + lru.input_gate_bias[head]
                r[part] = x[part] @ lru.recurrent_gate_weight[head] + lru.recurrent_gate_bias[head]
            a = torch.sigmoid(-lru.recurrent_param) ** (8 * torch.sigmoid(r))
            root = (1 - a**2).sqrt() if t else 1
            h = a * h + root * torch.sigmoid(i) * x
            rows.append(h * y[t])
        truth = torch.stack(rows) @ mixer.linear_out.weight.T + mixer.linear_out.bias
        torch.testing.assert_close(mixer(u[None])[0], truth, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mixer.prefill(u[None])[1].h_bc[0], h, rtol=1e-10, atol=1e-12)


def test_initial_decays_are_in_their_range() -> None:
    mixer = RgLruMixer(layer_of("rglru", {"width": 4096}), Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    a = torch.sigmoid(-mixer.rg_lru.recurrent_param.detach().double())
    assert a.min() >= 0.9 * (1 - 1e-5)
    assert a.max() <= 0.999 * (1 + 1e-5)
    # a^2 is uniform: half of them lie below the middle of its range.
    assert 0.45 < (a.square() < (0.9**2 + 0.999**2) / 2).double().mean() < 0.55


def test_costs_by_hand() -> None:
    layer = layer_of("rglru", {"width": 96, "heads": 3}, d_model=64)
    gates = 2 * (3 * 32 * 32 + 96)
    inner = 2 * (64 * 96 + 96) + (96 * 4 + 96) + gates + 96
    assert layer.params(64) == inner + 96 * 64 + 64
    assert layer.params(64, project=False) == inner
    assert layer.flops(64, 1000) == 2 * (2 * 64 * 96 + 2 * 96 * 32 + 96 * 4 + 96 * 64) + 5 * 96
    assert layer.state_bytes(64, 1000, 2) == 96 * 3 * 2 + 96 * 4


def test_heads_by_default_are_as_wide_as_released() -> None:
    assert layer_of("rglru", {}, d_model=2560).heads == 10
    assert layer_of("rglru", {}, d_model=64).heads == 1


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"heads": 5}, "heads", "5 heads do not divide the width 64"),
        ({"width": 770}, "heads", "3 heads do not divide the width 770 (the default); give heads too"),
        ({"a_init": [0.9, 1.0]}, "a_init", "0 < low <= high < 1, found [0.9, 1]"),
        ({"a_init": [0.9, 0.8]}, "a_init", "found [0.9, 0.8]"),
    ],
)
def test_what_cannot_hold_is_refused(fields: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        layer_of("rglru", fields)
    assert caught.value.field == field
    assert words in str(caught.value)
