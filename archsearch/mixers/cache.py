"""Caches of what attention keeps of past tokens, which grow by a token a step.

Shape suffixes: b batch, g key/value heads, l new tokens, t cached tokens, e channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Room:
    """Buffers with space for tokens to come; caches are views of their first tokens.

    Copying a whole cache for every token costs several times what attending to it does. So the longest cache
    of a buffer writes its next token into the buffer; any other (an old state that is stepped again, one that
    was moved or re-ordered) starts a buffer of its own. An eighth of a cache is space.
    """

    def __init__(self, past: tuple[Tensor, ...]):
        self.filled = past[0].shape[-2]
        capacity = self.filled + max(self.filled // 8, 64)
        self.buffers = tuple(t.new_empty(*t.shape[:-2], capacity, t.shape[-1]) for t in past)
        for buffer, tensor in zip(self.buffers, past, strict=True):
            buffer[..., : self.filled, :] = tensor

    def continues(self, past: tuple[Tensor, ...]) -> bool:
        """Whether these are this room's tokens, all of them, and one more may be written after them."""
        buffer = self.buffers[0]
        free = self.filled < buffer.shape[-2]
        frozen = buffer.is_inference() and not torch.is_inference_mode_enabled()
        same = all(b.data_ptr() == t.data_ptr() for b, t in zip(self.buffers, past, strict=True))
        return self.filled == past[0].shape[-2] and free and not frozen and same

    def add(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., self.filled : self.filled + 1, :] = tensor
        self.filled += 1
        return tuple(buffer[..., : self.filled, :] for buffer in self.buffers)


def grown(
    past: tuple[Tensor, ...], new: tuple[Tensor, ...], room: Room | None
) -> tuple[tuple[Tensor, ...], Room | None]:
    """Tensors (..., t, e) with one token (..., 1, e) more, and the room that they now lie in.

    `past` stays valid, and may be continued again with another token.
    """
    traced = torch.is_grad_enabled() and any(t.requires_grad for t in (*past, *new))
    if traced or any(p.dtype != n.dtype for p, n in zip(past, new, strict=True)):
        return tuple(torch.cat(pair, dim=-2) for pair in zip(past, new, strict=True)), None
    if room is None or not room.continues(past):
        room = Room(past)
    return room.add(new), room


class KvCache(NamedTuple):
    """Keys and values of the last tokens, (batch, kv_heads, tokens, head_dim) each."""

    k_bgte: Tensor
    v_bgte: Tensor
    room: Room | None = None

    def append(self, k_bgle: Tensor, v_bgle: Tensor, window: int | None) -> KvCache:
        """With one token more, and without the one that leaves the window."""
        if window is None:
            (k, v), room = grown((self.k_bgte, self.v_bgte), (k_bgle, v_bgle), self.room)
            return KvCache(k, v, room)
        leaving = max(0, self.k_bgte.shape[2] + 1 - window)
        k = torch.cat([self.k_bgte[:, :, leaving:], k_bgle], dim=2)
        v = torch.cat([self.v_bgte[:, :, leaving:], v_bgle], dim=2)
        return KvCache(k, v)


def last_tokens(k_bgle: Tensor, v_bgle: Tensor, window: int | None) -> KvCache:
    """The cache that the next token needs: everything, or the last `window` tokens."""
    if window is None or k_bgle.shape[2] <= window:
        return KvCache(k_bgle, v_bgle)
    # Cloned, so that the cache holds these tokens and not the storage of all.
    return KvCache(k_bgle[:, :, -window:].clone(), v_bgle[:, :, -window:].clone())
