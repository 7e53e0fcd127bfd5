"""Causal softmax attention of queries to keys and values: whole sequences, and one token against a cache.

Shape suffixes: b batch, l length, h query heads, g key/value heads, x any heads, e head_dim, t key tokens,
n blocks, s tokens of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.mixers.cache import KvCache
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.kernels.limits import attention_problem

LEAST_BLOCK = 64
"""Tokens of a block of windowed attention, or the window where that is wider."""


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
    if window is not None and length >= 4 * max(window, LEAST_BLOCK):
        q, k, v, seen = _in_blocks(q_bhle, k_bgle, v_bgle, window, mask_bl)
        y = _attend(q, k, v, seen, scale, softcap, sinks_h)
        return y.unflatten(0, (len(q_bhle), -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]
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


def _visible(length: int, window: int | None, mask_bl: Tensor | None, device: torch.device) -> Tensor:
    """Which keys (last axis) each query sees: (l, l), or (b, 1, l, l) where there is padding.

    Padding sees itself, so that no row of a softmax is empty.
    """
    at = torch.arange(length, device=device)
    age = at[:, None] - at[None, :]
    seen = age >= 0 if window is None else (age >= 0) & (age < window)
    return seen if mask_bl is None else (seen & mask_bl[:, None, None, :]) | (age == 0)


def _in_blocks(
    q_bhle: Tensor, k_bgle: Tensor, v_bgle: Tensor, window: int, mask_bl: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Blocks of s >= window tokens as sequences of their own: queries (b n, h, s, e), keys and values
    (b n, g, 2 s, e) of the block and the one before it, and what each query sees (b n, 1, s, 2 s).

    Work and memory then grow with length x window, not with length squared.
    """
    batch, length, size = len(q_bhle), q_bhle.shape[2], max(window, LEAST_BLOCK)
    count = -(-length // size)

    def blocks(t_bxle: Tensor) -> Tensor:
        padded = F.pad(t_bxle, (0, 0, 0, count * size - length))
        return padded.unflatten(2, (count, size)).transpose(1, 2)

    def with_last(t_bnxse: Tensor) -> Tensor:
        last = F.pad(t_bnxse[:, :-1], (0, 0) * 3 + (1, 0))
        return torch.cat([last, t_bnxse], dim=3).flatten(0, 1)

    at = torch.arange(2 * size, device=q_bhle.device)
    age = at[size:, None] - at
    seen = ((age >= 0) & (age < window)).repeat(batch, count, 1, 1, 1)
    seen[:, 0, :, :, :size] = False
    if mask_bl is not None:
        mask_bnxse = blocks(mask_bl[:, None, :, None])
        seen = (seen & with_last(mask_bnxse).view(batch, count, 1, 1, -1)) | (age == 0)
    q = blocks(q_bhle).flatten(0, 1)
    return q, with_last(blocks(k_bgle)), with_last(blocks(v_bgle)), seen.flatten(0, 1)


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
