"""Causal softmax attention of queries to keys and values: whole sequences, and one token against a cache.

Shape suffixes: b batch, l length, h query heads, g key/value heads, e head_dim, t key tokens, s tokens
of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.mixers.cache import CachePlace, KvCache
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.kernels.limits import attention_problem, cached_attention_problem

LEAST_BLOCK, LARGEST_BLOCK = 64, 128
"""Queries at a time of windowed attention on a CPU. Measured: fewer cost calls, more cost scores outside."""

MOST_BLOCKS = 64
"""Of a sequence on a GPU, where calls cost more."""


def causal_attention(
    q_bhle: Tensor,
    k_bgle: Tensor,
    v_bgle: Tensor,
    *,
    scale: float,
    window: int | None,
    kernels: Kernels,
    mask_bl: Tensor | None = None,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v over the tokens up to each one, the last `window` of them where given.

    mask_bl: False at padding, which no token but itself attends to. softcap: scores s become
    softcap * tanh(s / softcap). sinks_h: a logit a head that joins the softmax's denominator. Values may be
    of another width than keys. Returns (b, h, l, width of the values).
    """
    choice = attention_kernel(
        kernels,
        key_width=q_bhle.shape[-1],
        value_width=v_bgle.shape[-1],
        window=window,
        softcap=softcap,
        sinks=sinks_h is not None,
        padding=mask_bl is not None,
    )
    kernel = choice.of(q_bhle)
    if kernel is not None:
        shape = {"scale": scale, **_asked(window, softcap)}
        if choice.operation == "packed_attention":
            return _packed(kernel, q_bhle, k_bgle, v_bgle, mask_bl, shape)
        return kernel(q_bhle, k_bgle, v_bgle, **shape)
    length = q_bhle.shape[2]
    if window is not None and length > max(window, 2 * (size := _queries_at_a_time(q_bhle, window))):
        attend = partial(_attend, scale=scale, softcap=softcap, sinks_h=sinks_h)
        return _in_a_band(attend, q_bhle, k_bgle, v_bgle, window, size, mask_bl)
    plain = mask_bl is None and softcap is None and (window is None or window >= length)
    allowed = None if plain else _visible(length, window, mask_bl, q_bhle.device)
    return _attend(q_bhle, k_bgle, v_bgle, allowed, scale, softcap, sinks_h)


def attention_kernel(
    kernels: Kernels,
    *,
    key_width: int,
    value_width: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    padding: bool = False,
) -> Choice:
    """What computes attention of this form over a sequence; of the operation `packed_attention` where kernels
    need the tokens without padding, or have windows in that form alone."""
    problem, forms = attention_problem(key_width, value_width, sinks=sinks), _asked(window, softcap)
    plain = kernels.choose("attention", problem, forms, needed=not forms)
    packed = kernels.choose("packed_attention", problem, forms, needed=bool(forms) and plain.function is None)
    return plain if not padding and (plain.function is not None or not forms) else packed


def cached_attention_kernel(kernels: Kernels, *, key_width: int, value_width: int) -> Choice:
    """What computes a step's attention where it is recorded."""
    problem = cached_attention_problem(max(key_width, value_width))
    return kernels.choose("cached_attention", problem, needed=False)


def _asked(window: int | None, softcap: float | None) -> dict[str, float]:
    """The forms beyond plain attention, by name."""
    return {name: value for name, value in (("window", window), ("softcap", softcap)) if value is not None}


@torch.compiler.disable(reason="how many tokens are no padding is known to the tensors alone")
def _packed(
    kernel: Callable[..., Tensor],
    q_bhle: Tensor,
    k_bgle: Tensor,
    v_bgle: Tensor,
    mask_bl: Tensor | None,
    shape: dict[str, float],
) -> Tensor:
    """Attention over the tokens of all sequences one after another, padding left out; it gets zeros."""
    batch, length = len(q_bhle), q_bhle.shape[2]
    rows = [t.transpose(1, 2).flatten(0, 1) for t in (q_bhle, k_bgle, v_bgle)]
    lengths_b = torch.full((batch,), length, device=q_bhle.device) if mask_bl is None else mask_bl.sum(1)
    starts = F.pad(lengths_b.cumsum(0, dtype=torch.int32), (1, 0))
    if mask_bl is None:
        y_the = kernel(*rows, starts=starts, longest=length, **shape)
    else:
        at = mask_bl.flatten().nonzero().squeeze(1)
        y = kernel(*(t[at] for t in rows), starts=starts, longest=int(lengths_b.max()), **shape)
        y_the = y.new_zeros(batch * length, *y.shape[1:]).index_copy(0, at, y)
    return y_the.unflatten(0, (batch, length)).transpose(1, 2)


def _attend(
    q_bhle: Tensor,
    k_bgte: Tensor,
    v_bgte: Tensor,
    allowed: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks_h: Tensor | None,
) -> Tensor:
    """allowed: as of `explicit_attention`; None for a causal square."""
    if softcap is not None:
        return explicit_attention(
            q_bhle, k_bgte, v_bgte, allowed, scale=scale, softcap=softcap, sinks_h=sinks_h
        )
    q, k, v = q_bhle, k_bgte, v_bgte
    if sinks_h is not None:
        q, k, v = _with_sink(q, k, v, sinks_h / scale)
        allowed = None if allowed is None else F.pad(allowed, (1, 0, 1, 0), value=True)
    width, widest = v_bgte.shape[-1], max(q.shape[-1], v.shape[-1])
    if widest != width or q.shape[-1] != width:
        # Fused kernels take one width for all three, and some of them multiples of 8 alone; without one, all
        # scores would be written out.
        widest = -(-widest // 8) * 8
        q, k, v = (F.pad(t, (0, widest - t.shape[-1])) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, is_causal=allowed is None, scale=scale, enable_gqa=grouped
    )
    return y if y.shape[-1] == width else y[:, :, -q_bhle.shape[2] :, :width]


def next_attention(
    q_bhe: Tensor,
    k_bge: Tensor,
    v_bge: Tensor,
    cache: KvCache | CachePlace,
    *,
    kernel: Choice,
    scale: float,
    mask_bt: Tensor | None = None,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Attention of one token a sequence to everything cached and itself, and the cache with it.

    kernel: for a cache's place, which holds no padding.
    """
    if isinstance(cache, CachePlace):
        assert kernel.function is not None
        given = q_bhe, k_bge, v_bge, cache.row_5
        return kernel.function(*given, scale=scale, softcap=softcap, sinks_x=sinks_h), cache
    cache = cache.append(k_bge[:, :, None], v_bge[:, :, None])
    return attend_to_cache(q_bhe, cache, scale, mask_bt=mask_bt, softcap=softcap, sinks_h=sinks_h), cache


def attend_to_cache(
    q_bhe: Tensor,
    cache: KvCache,
    scale: float,
    *,
    mask_bt: Tensor | None = None,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """One query token a sequence against everything cached.

    mask_bt: False at padding; of all tokens so far, though the cache may hold only the last of them.
    """
    q, k, v = q_bhe[:, :, None], cache.k_bgte, cache.v_bgte
    allowed = None if mask_bt is None else mask_bt[:, None, None, -k.shape[2] :]
    grouped = q.shape[1] != k.shape[1]
    if softcap is None and sinks_h is None and (q.is_cuda or not grouped):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale, enable_gqa=grouped)
    else:
        # Also for groups on a CPU, where the fused kernel reads keys and values once a query head.
        y = explicit_attention(q, k, v, allowed, scale=scale, softcap=softcap, sinks_h=sinks_h)
    return y[:, :, 0]


def explicit_attention(
    q_bhle: Tensor,
    k_bgte: Tensor,
    v_bgte: Tensor,
    allowed: Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks_h: Tensor | None = None,
) -> Tensor:
    """Attention with its scores written out, for what fused kernels do not have.

    allowed: what each query sees, broadcast over (b, h, l, t); every query must see a key. The heads of a
    group are rows of one product, so that keys and values are not repeated.
    """
    (heads, length), (groups, keys) = q_bhle.shape[1:3], k_bgte.shape[1:3]

    def folded(t_bhlx: Tensor) -> Tensor:
        return t_bhlx.reshape(t_bhlx.shape[0], groups, heads // groups * length, t_bhlx.shape[-1])

    scores = (folded(q_bhle * scale) @ k_bgte.mT).view(-1, heads, length, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    if sinks_h is not None:
        sinks = sinks_h.to(scores.dtype).view(-1, 1, 1).expand(len(scores), -1, length, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :keys].to(v_bgte.dtype)
    return (folded(weights) @ v_bgte).view(-1, heads, length, v_bgte.shape[-1])


def _queries_at_a_time(q_bhle: Tensor, window: int) -> int:
    if q_bhle.is_cuda:
        return max(LEAST_BLOCK, window // 2, -(-q_bhle.shape[2] // MOST_BLOCKS))
    return min(max(LEAST_BLOCK, window // 4), LARGEST_BLOCK)


def _visible(length: int, window: int | None, mask_bl: Tensor | None, device: torch.device) -> Tensor:
    """Which keys (last axis) each query sees: (l, l), or (b, 1, l, l) where there is padding.

    Padding sees itself, so that no row of a softmax is empty.
    """
    at = torch.arange(length, device=device)
    age = at[:, None] - at[None, :]
    seen = age >= 0 if window is None else (age >= 0) & (age < window)
    return seen if mask_bl is None else (seen & mask_bl[:, None, None, :]) | (age == 0)


def _in_a_band(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    q_bhle: Tensor,
    k_bgle: Tensor,
    v_bgle: Tensor,
    window: int,
    size: int,
    mask_bl: Tensor | None,
) -> Tensor:
    """Windowed attention by `size` queries at a time, to the keys that one of them sees: work and memory grow
    with length x (window + size), not with length squared."""
    length, blocks_back = q_bhle.shape[2], -(-(window - 1) // size)
    q, k, v = (t.split(size, dim=2) for t in (q_bhle, k_bgle, v_bgle))
    at = torch.arange((blocks_back + 1) * size, device=q_bhle.device)
    age = at[-size:, None] - at
    inside = (age >= 0) & (age < window)
    ys = []
    for i, q_bhse in enumerate(q):
        first, stop = max(0, i - blocks_back), min((i + 1) * size, length)
        rows, columns = slice(stop - i * size), slice((first - i - 1) * size, stop - (i + 1) * size or None)
        seen = inside[rows, columns]
        if mask_bl is not None:
            seen = (seen & mask_bl[:, None, None, first * size : stop]) | (age[rows, columns] == 0)
        k_bgse, v_bgse = (torch.cat(t[first : i + 1], dim=2) for t in (k, v))
        ys.append(attend(q_bhse, k_bgse, v_bgse, seen))
    return torch.cat(ys, dim=2)


def _with_sink(
    q_bhle: Tensor, k_bgle: Tensor, v_bgle: Tensor, raw_h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A first token whose key scores `raw_h` before scaling, for every query, and whose value is zero.

    Queries and keys get one more channel, in which only the sink's key is not zero. The first query, the
    sink's own, keeps the mask causal; nobody reads it.
    """
    raw = raw_h.to(q_bhle.dtype).view(-1, 1, 1).expand(*q_bhle.shape[:3], 1)
    q = F.pad(torch.cat([q_bhle, raw], dim=-1), (0, 0, 1, 0))
    k, v = (F.pad(t, (0, 1, 1, 0)) for t in (k_bgle, v_bgle))
    k[:, :, 0, -1] = 1
    return q, k, v
