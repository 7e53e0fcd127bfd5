"""Caches that grow in place, and the old ones that stay what they were.

Shape suffixes: b batch, g key/value heads, t tokens, e head_dim.
"""

from __future__ import annotations

import copy

import pytest
import torch
from contract.building import random
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archsearch.mixers.base import state_bytes
from archsearch.mixers.cache import KvCache, last_tokens


def token(seed: int) -> Tensor:
    return random(2, 3, 1, 4, seed=seed)


def cache_of(tokens: list[int], window: int | None = None) -> KvCache:
    """The cache after these tokens, made at once."""
    k = torch.cat([token(seed) for seed in tokens], dim=2)
    return last_tokens(k, -k, window)


@pytest.mark.parametrize("window", [None, 1, 4, 9])
def test_a_cache_holds_the_window_and_nothing_more(window: int | None) -> None:
    k = random(1, 2, 9, 4)
    cache = last_tokens(k[:, :, :0], k[:, :, :0], window)
    for t in range(9):
        cache = cache.append(k[:, :, t : t + 1], -k[:, :, t : t + 1])
    kept = 9 if window is None else window
    assert torch.equal(cache.k_bgte, k[:, :, 9 - kept :])
    assert torch.equal(cache.v_bgte, -cache.k_bgte)
    assert state_bytes(cache) == 2 * cache.k_bgte.numel() * 8
    # What leaves a window is not kept for long.
    held = last_tokens(*random(2, 1, 1, 900, 4), 800)
    for t in range(400):
        held = held.append(k[:, :1, t % 9, None], k[:, :1, t % 9, None])
        assert held.k_bgte.shape[2] == 800
        assert held.k_bgte.untyped_storage().nbytes() <= held.k_bgte.numel() * 8 * 1.15


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), min_size=1, max_size=90),
    window=st.sampled_from([None, None, 3]),
)
def test_any_cache_may_be_continued_at_any_time(steps: list[tuple[int, int]], window: int | None) -> None:
    """A tree of continuations: every cache, old or new, is what it would be alone."""
    grown = [([7], cache_of([7], window))]
    for which, seed in steps:
        tokens, cache = grown[-1 - which % len(grown)]
        k = token(seed)
        grown.append(([*tokens, seed], cache.append(k, -k)))
    for tokens, cache in grown:
        truth = cache_of(tokens, window)
        assert torch.equal(cache.k_bgte, truth.k_bgte)
        assert torch.equal(cache.v_bgte, truth.v_bgte)
        assert state_bytes(cache) == state_bytes(truth)


def test_a_long_cache_is_not_copied_for_every_token() -> None:
    cache, places = cache_of(list(range(10)) * 40), []
    for seed in range(100):
        cache = cache.append(token(seed), token(seed))
        places.append(cache.k_bgte.data_ptr())
    assert len(set(places)) == 2
    assert cache.k_bgte.shape[2] == 500
    # Space for tokens to come is an eighth of the cache.
    assert cache.k_bgte.untyped_storage().nbytes() <= cache.k_bgte.numel() * 8 * 1.15


def test_caches_that_were_moved_or_cut_are_continued_as_they_are() -> None:
    cache = cache_of([1, 2, 3]).append(token(4), token(4))
    reordered = cache._replace(k_bgte=cache.k_bgte.flip(0), v_bgte=cache.v_bgte.flip(0))
    after, other = reordered.append(token(5), token(5)), cache.append(token(6), token(6))
    assert torch.equal(after.k_bgte, torch.cat([cache.k_bgte.flip(0), token(5)], dim=2))
    assert torch.equal(other.k_bgte, torch.cat([cache.k_bgte, token(6)], dim=2))
    cut = other._replace(k_bgte=other.k_bgte[:, :, :4], v_bgte=other.v_bgte[:, :, :4])
    assert torch.equal(cut.append(token(7), token(7)).k_bgte[:, :, :4], cache.k_bgte)
    twin = copy.deepcopy(other)
    twin.append(token(8), token(8))
    assert torch.equal(other.append(token(9), token(9)).k_bgte[:, :, -1:], token(9))


def test_gradients_pass_through_a_cache() -> None:
    k = random(1, 1, 3, 2).requires_grad_()
    cache = KvCache(k[:, :, :1], k[:, :, :1])
    for t in (1, 2):
        cache = cache.append(k[:, :, t : t + 1], k[:, :, t : t + 1])
    first = cache.k_bgte.square().sum()
    cache.append(k[:, :, :1], k[:, :, :1])
    first.backward()
    torch.testing.assert_close(k.grad, 2 * k.detach())


def test_a_cache_from_inference_mode_may_be_continued_outside_it() -> None:
    with torch.inference_mode():
        cache = cache_of([1, 2]).append(token(3), token(3))
    assert torch.equal(cache.append(token(4), token(4)).k_bgte, cache_of([1, 2, 3, 4]).k_bgte)


def test_dtypes_that_differ_meet_in_the_wider() -> None:
    narrow = KvCache(*(t.float() for t in cache_of([1])[:2])).append(token(2), token(2))
    assert narrow.k_bgte.dtype == torch.float64
    assert torch.equal(narrow.k_bgte[:, :, 1:], token(2))
