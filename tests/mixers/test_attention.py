"""Attention against formulas written out.

Shape suffixes: b batch, l query position, t key position, h query heads, g key/value heads, e head_dim.
"""

from __future__ import annotations

import math

import pytest
import torch
from contract.building import inputs, mixer_of
from torch import Tensor

from archsearch.mixers.attention import KvCache, attend_to_cache, causal_attention, last_tokens
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.rope import Rotary
from archsearch.spec.layers import Rope


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def brute_force(q_bhle: Tensor, k_bhte: Tensor, v_bhte: Tensor, scale: float, window: int | None) -> Tensor:
    """Softmax over the visible keys, one query at a time."""
    out = torch.zeros_like(q_bhle)
    for i in range(q_bhle.shape[2]):
        first = 0 if window is None else max(0, i - window + 1)
        k, v = k_bhte[:, :, first : i + 1], v_bhte[:, :, first : i + 1]
        scores_bht = torch.einsum("bhe,bhte->bht", q_bhle[:, :, i], k) * scale
        weights = scores_bht.exp() / scores_bht.exp().sum(-1, keepdim=True)
        out[:, :, i] = torch.einsum("bht,bhte->bhe", weights, v)
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 7, 12, 13, 1000])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_masks_and_groups_are_those_of_brute_force(window: int | None, heads: int, kv_heads: int) -> None:
    q, k, v = random(2, heads, 13, 4), random(2, kv_heads, 13, 4, seed=1), random(2, kv_heads, 13, 4, seed=2)
    k_repeated, v_repeated = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    truth = brute_force(q, k_repeated, v_repeated, 0.3, window)
    found = causal_attention(q, k, v, scale=0.3, window=window, kernels=Kernels())
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    last = attend_to_cache(q[:, :, -1], last_tokens(k, v, window), 0.3)
    torch.testing.assert_close(last, truth[:, :, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 4, 9])
def test_a_cache_holds_the_window_and_nothing_more(window: int | None) -> None:
    k = random(1, 2, 9, 4)
    cache = KvCache(k[:, :, :0], k[:, :, :0])
    for t in range(9):
        cache = cache.append(k[:, :, t : t + 1], -k[:, :, t : t + 1], window)
    kept = 9 if window is None else window
    assert torch.equal(cache.k_bgte, k[:, :, 9 - kept :])
    assert torch.equal(cache.v_bgte, -cache.k_bgte)
    if window is not None:
        assert cache.k_bgte.untyped_storage().nbytes() == cache.k_bgte.numel() * 8


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_rotation_turns_scores_into_functions_of_distance(fraction: float) -> None:
    rotary = Rotary(Rope(theta=100.0, fraction=fraction), 8)
    q, k = random(8), random(8, seed=1)

    def score(at: int, other: int) -> float:
        turned_q, turned_k = rotary(q.view(1, 1, 1, 8), at), rotary(k.view(1, 1, 1, 8), other)
        return (turned_q * turned_k).sum().item()

    for distance in (0, 1, 5, 40):
        expected = score(distance, 0)
        for start in (1, 17, 300, 4000):
            assert score(start + distance, start) == pytest.approx(expected, rel=1e-9)
    assert score(3, 0) != pytest.approx(score(4, 0), rel=1e-6)


def test_rotation_by_hand_and_the_channels_it_leaves() -> None:
    rotary = Rotary(Rope(theta=10.0, fraction=0.5), 8)
    x = random(1, 1, 6, 8)
    y = rotary(x, 2)
    for row in range(6):
        for i in range(2):
            angle = (row + 2) * 10.0 ** (-2 * i / 4)
            a, b = x[0, 0, row, i].item(), x[0, 0, row, i + 2].item()
            assert y[0, 0, row, i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle))
            assert y[0, 0, row, i + 2].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle))
    assert torch.equal(y[..., 4:], x[..., 4:])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_rotation_after_inference_mode_can_be_trained_through() -> None:
    rotary = Rotary(Rope(), 4)
    with torch.inference_mode():
        rotary(random(1, 1, 3, 4), 0)
    x = random(1, 1, 3, 4).requires_grad_()
    rotary(x, 0).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("norm", [None, "head", "full"])
def test_layer_by_hand(norm: str | None) -> None:
    fields = {"heads": 4, "kv_heads": 2, "rope": None, "qk_norm": norm, "bias": True, "output_bias": True}
    mixer, x = mixer_of("attention", fields), inputs(2, 9)
    with torch.no_grad():
        q, k, v = (x @ mixer.qkv_proj.weight.T + mixer.qkv_proj.bias).split([64, 32, 32], dim=-1)

        def rms(t: Tensor, weight: Tensor, width: int) -> Tensor:
            grouped = t.unflatten(-1, (-1, width))
            scale = (grouped.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
            return (grouped * scale * weight).flatten(-2)

        if norm is not None:
            widths = (16, 16) if norm == "head" else (64, 32)
            q, k = rms(q, mixer.q_norm.weight, widths[0]), rms(k, mixer.k_norm.weight, widths[1])
        q, k, v = (t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y = brute_force(q, k, v, 16**-0.5, None).transpose(1, 2).flatten(2)
        truth = y @ mixer.out_proj.weight.T + mixer.out_proj.bias
        torch.testing.assert_close(mixer(x), truth, rtol=1e-10, atol=1e-10)
