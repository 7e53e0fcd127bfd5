"""Attention functions against one query at a time, written out.

Shape suffixes: b batch, l query position, t key position, h query heads, g key/value heads, e head_dim.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from contract.building import random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers import attend
from archsearch.mixers.attend import attend_to_cache, causal_attention, explicit_attention
from archsearch.mixers.cache import last_tokens
from archsearch.mixers.kernels import Kernels, choice
from archsearch.mixers.kernels.torch_flash import windowed_attention
from mixers.serving import Serving, served


def brute_force(
    q_bhle: Tensor,
    k_bgte: Tensor,
    v_bgte: Tensor,
    *,
    scale: float,
    window: int | None = None,
    mask_bl: Tensor | None = None,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """Softmax over the visible keys, one query of one head at a time."""
    batch, heads, length, _ = q_bhle.shape
    out = torch.zeros(batch, heads, length, v_bgte.shape[-1], dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, length))).tolist():
        g = h // (heads // k_bgte.shape[1])
        seen = [t for t in range(i + 1) if window is None or i - t < window]
        seen = [t for t in seen if mask_bl is None or mask_bl[b, t] or t == i]
        scores = torch.stack([(q_bhle[b, h, i] * k_bgte[b, g, t]).sum() * scale for t in seen])
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        total = scores.exp().sum() + (0 if sinks_h is None else sinks_h[h].exp())
        out[b, h, i] = sum(s.exp() / total * v_bgte[b, g, t] for s, t in zip(scores, seen, strict=True))
    return out


@given(
    length=st.integers(1, 9),
    window=st.one_of(st.none(), st.integers(1, 10)),
    block=st.sampled_from([1, 2, 64]),
    groups=st.integers(1, 2),
    shared=st.integers(1, 3),
    softcap=st.sampled_from([None, 0.5, 3.0]),
    sinks=st.booleans(),
    padding=st.sampled_from([None, (0, 0), (0, 1), (3, 8)]),
    value_dim=st.sampled_from([4, 3, 6]),
)
def test_every_form_is_that_of_brute_force(
    length: int,
    window: int | None,
    block: int,
    groups: int,
    shared: int,
    softcap: float | None,
    sinks: bool,
    padding: tuple[int, int] | None,
    value_dim: int,
) -> None:
    q, k = random(2, groups * shared, length, 4) * 2, random(2, groups, length, 4, seed=1)
    v = random(2, groups, length, value_dim, seed=2)
    sinks_h = random(groups * shared, seed=3) if sinks else None
    mask_bl = None
    if padding is not None:
        # The last token is real.
        mask_bl = torch.arange(length) >= torch.tensor(padding).clamp_max(length - 1)[:, None]
    forms = {"softcap": softcap, "sinks_h": sinks_h}
    truth = brute_force(q, k, v, scale=0.3, window=window, mask_bl=mask_bl, **forms)
    with patch.object(attend, "LEAST_BLOCK", block):
        found = causal_attention(
            q, k, v, scale=0.3, window=window, kernels=Kernels(), mask_bl=mask_bl, **forms
        )
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    last = attend_to_cache(q[:, :, -1], last_tokens(k, v, window), 0.3, mask_bt=mask_bl, **forms)
    torch.testing.assert_close(last, truth[:, :, -1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(("window", "block"), [(None, 64), (3, 64), (1, 1)])
def test_gradients_of_every_input_are_those_of_brute_force(
    softcap: float | None, window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "LEAST_BLOCK", block)
    mask_bl = torch.arange(6) >= torch.tensor([[0], [2]])
    inputs = [random(2, 4, 6, 4), random(2, 2, 6, 4, seed=1), random(2, 2, 6, 4, seed=2), random(4, seed=3)]
    weights = random(2, 4, 6, 4, seed=4) * mask_bl[:, None, :, None]

    def gradients(attention: object, **extra: object) -> tuple[Tensor, ...]:
        q, k, v, sinks_h = (t.clone().requires_grad_() for t in inputs)
        forms = {"window": window, "mask_bl": mask_bl, "softcap": softcap, "sinks_h": sinks_h}
        y = attention(q, k, v, scale=0.4, **forms, **extra)  # type: ignore[operator]
        return torch.autograd.grad((y * weights).sum(), [q, k, v, sinks_h])

    pairs = zip(gradients(causal_attention, kernels=Kernels()), gradients(brute_force), strict=True)
    for found, truth in pairs:
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("window", "length"), [(5, 256), (64, 300), (70, 281)])
@pytest.mark.parametrize("forms", [{}, {"softcap": 1.0}, {"sinks_h": random(4, seed=3)}], ids="+".join)
def test_long_sequences_in_a_window_are_those_of_a_whole_mask(
    window: int, length: int, forms: dict[str, Any]
) -> None:
    q, k, v = random(2, 4, length, 8), random(2, 2, length, 8, seed=1), random(2, 2, length, 8, seed=2)
    mask_bl = torch.arange(length) >= torch.tensor([[0], [100]])
    age = torch.arange(length)[:, None] - torch.arange(length)
    for mask in (None, mask_bl):
        allowed = (age >= 0) & (age < window)
        if mask is not None:
            allowed = (allowed & mask[:, None, None]) | (age == 0)
        truth = explicit_attention(q, k, v, allowed, scale=0.5, **forms)
        found = causal_attention(q, k, v, scale=0.5, window=window, kernels=Kernels(), mask_bl=mask, **forms)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


def test_narrow_scores_are_weighed_in_float32() -> None:
    q, k, v = (random(1, 2, 40, 8, seed=i).bfloat16() for i in range(3))
    forms: dict[str, Any] = {"scale": 0.4, "window": None, "kernels": Kernels(), "softcap": 5.0}
    truth = causal_attention(q.double(), k.double(), v.double(), **forms)
    found = causal_attention(q, k, v, **forms)
    assert found.dtype == torch.bfloat16
    # 0.0018 with scores in bfloat16 throughout.
    assert (found - truth).square().mean().sqrt() < 0.0013


def test_the_kernel_gets_the_cap_and_leaves_what_it_cannot() -> None:
    calls: list[dict[str, object]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
        calls.append(given)
        return v.repeat_interleave(q.shape[2] // v.shape[2], dim=2)

    kernels = Serving(served("attention", kernel))
    q, k, v = random(1, 4, 5, 4), random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    y = causal_attention(q, k, v, scale=0.5, window=3, kernels=kernels, softcap=2.0)
    assert calls == [{"softmax_scale": 0.5, "causal": True, "window_size": (2, 0), "softcap": 2.0}]
    assert torch.equal(y, v.repeat_interleave(2, dim=1))
    common = {"scale": 0.5, "window": None, "kernels": kernels}
    causal_attention(q, k, v, **common, mask_bl=torch.ones(1, 5, dtype=torch.bool))
    causal_attention(q, k, v, **common, sinks_h=torch.zeros(4))
    causal_attention(q, k, v[..., :3], **common)
    assert len(calls) == 1


def packed_kernel(
    q_the: Tensor,
    k_tge: Tensor,
    v_tge: Tensor,
    starts: Tensor,
    starts_k: Tensor,
    longest: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """By the convention of torch's varlen_attn before it shared heads."""
    assert starts is starts_k
    assert starts.dtype == torch.int32
    assert longest == longest_k == int(starts.diff().max())
    assert k_tge.shape[1] == q_the.shape[1]
    assert window_size[1] == 0
    parts = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (t[start:end].transpose(0, 1)[None] for t in (q_the, k_tge, v_tge))
        age = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (age >= 0) & ((age <= window_size[0]) | (window_size[0] < 0))
        parts.append(explicit_attention(q, k, v, seen, scale=scale)[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("padding", [False, True])
def test_packed_kernels_get_the_tokens_without_padding(window: int | None, padding: bool) -> None:
    q, k, v = random(2, 4, 9, 8), random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    mask = torch.arange(9) >= torch.tensor([[0], [4]]) if padding else None
    kernels = Serving(served("packed_attention", packed_kernel, which=1))
    form = {"scale": 0.5, "window": window, "mask_bl": mask}
    truth = causal_attention(q, k, v, **form, kernels=Kernels())
    found = causal_attention(q, k, v, **form, kernels=kernels)
    assert found.isfinite().all()
    if mask is not None:
        truth, found = (t * mask[:, None, :, None] for t in (truth, found))
    torch.testing.assert_close(found, truth)


def windowed_kernel(q_blhe: Tensor, k_blge: Tensor, v_blge: Tensor, scale: float, window: int) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q_blhe, k_blge, v_blge))
    age = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    return explicit_attention(q, k, v, (age >= 0) & (age < window), scale=scale).transpose(1, 2)


def test_torchs_flash_attention_serves_windows_without_padding_alone() -> None:
    q, k, v = random(2, 4, 9, 8), random(2, 2, 9, 8, seed=1), random(2, 2, 9, 8, seed=2)
    form: dict[str, Any] = {"scale": 0.5, "window": 3}
    kernels = Serving(served("attention", windowed_kernel, which=1))
    truth = causal_attention(q, k, v, **form, kernels=Kernels())
    torch.testing.assert_close(causal_attention(q, k, v, **form, kernels=kernels), truth)
    choice._choose.cache_clear()
    assert "windowed_attention" not in choice._choose("attention", "cuda", None, frozenset()).why
    assert "windowed_attention" in choice._choose("attention", "cuda", None, frozenset({"softcap"})).why


def test_torchs_flash_attention_takes_what_it_is_given() -> None:
    """Arguments that do not fit would be a RuntimeError; that it has no CPU version comes after them."""
    if torch.cuda.is_available():
        pytest.skip("shown by its results")
    heads = (torch.zeros(1, 9, 2, 6, dtype=torch.bfloat16) for _ in range(3))
    with pytest.raises(NotImplementedError):
        windowed_attention(*heads, scale=0.5, window=3)
