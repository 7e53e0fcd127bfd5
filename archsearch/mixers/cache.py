"""Caches of what attention keeps of past tokens, which grow by a token a step.

Shape suffixes: b batch, g key/value heads, l new tokens, t cached tokens, e channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Room:
    """Buffers with space for tokens to come; caches are views of the last `kept` of those that fill them.

    Copying a whole cache for every token costs several times what attending to it does. So the longest cache
    of a buffer writes its next token into the buffer; any other (an old state that is stepped again, one that
    was moved or re-ordered) starts a buffer of its own. An eighth of a cache is space.
    """

    def __init__(self, past: tuple[Tensor, ...]):
        self.filled = self.kept = past[0].shape[-2]
        capacity = self.filled + max(self.filled // 8, 64)
        self.buffers = tuple(t.new_empty(*t.shape[:-2], capacity, t.shape[-1]) for t in past)
        for buffer, tensor in zip(self.buffers, past, strict=True):
            buffer[..., : self.filled, :] = tensor

    def continues(self, past: tuple[Tensor, ...]) -> bool:
        """Whether these are this room's tokens, all of them, and one more may be written after them."""
        buffer = self.buffers[0]
        free = self.filled < buffer.shape[-2]
        frozen = buffer.is_inference() and not torch.is_inference_mode_enabled()
        same = all(a.data_ptr() == t.data_ptr() for a, t in zip(self.views(), past, strict=True))
        return self.kept == past[0].shape[-2] and free and not frozen and same

    def add(self, new: tuple[Tensor, ...], window: int | None) -> tuple[Tensor, ...]:
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., self.filled : self.filled + 1, :] = tensor
        return self.take(window)

    def take(self, window: int | None) -> tuple[Tensor, ...]:
        """The tokens, with one that has been written after them, and without one that leaves the window."""
        self.filled, self.kept = self.filled + 1, _least(self.kept + 1, window)
        return self.views()

    def views(self) -> tuple[Tensor, ...]:
        return tuple(buffer[..., self.filled - self.kept : self.filled, :] for buffer in self.buffers)


def grown(
    past: tuple[Tensor, ...], new: tuple[Tensor, ...], room: Room | None, window: int | None = None
) -> tuple[tuple[Tensor, ...], Room | None]:
    """Tensors (..., t, e) with one token (..., 1, e) more, the last `window` of them, and the room that they
    now lie in.

    `past` stays valid, and may be continued again with another token.
    """
    traced = torch.is_grad_enabled() and any(t.requires_grad for t in (*past, *new))
    if traced or any(p.dtype != n.dtype for p, n in zip(past, new, strict=True)):
        kept = _least(past[0].shape[-2] + 1, window) - 1
        pairs = ((p[..., p.shape[-2] - kept :, :], n) for p, n in zip(past, new, strict=True))
        return tuple(torch.cat(pair, dim=-2) for pair in pairs), None
    if room is None or not room.continues(past):
        room = Room(past)
    return room.add(new, window), room


def _least(tokens: int, window: int | None) -> int:
    return tokens if window is None else min(tokens, window)


class Position(int):
    """How many tokens came before. Of a step that is recorded as a CUDA graph: a tensor in its place."""


def next_position(position: Position | Tensor) -> Any:
    return position + 1 if isinstance(position, Tensor) else Position(position + 1)


class CachePlace(NamedTuple):
    """A `KvCache` in a step that is recorded: int64, where keys and values lie, their capacity, how many
    tokens fill them, and the first that the next one sees."""

    row_5: Tensor


class KvCache(NamedTuple):
    """Keys and values of the last tokens, at most `window`: (batch, kv_heads, tokens, head_dim) each.

    recordable: whether the layer takes a `CachePlace` instead.
    """

    k_bgte: Tensor
    v_bgte: Tensor
    window: int | None = None
    recordable: bool = False
    room: Room | None = None

    def append(self, k_bgle: Tensor, v_bgle: Tensor) -> KvCache:
        """With one token more, and without the one that leaves the window."""
        (k, v), room = grown((self.k_bgte, self.v_bgte), (k_bgle, v_bgle), self.room, self.window)
        return self._replace(k_bgte=k, v_bgte=v, room=room)

    def with_room(self) -> KvCache:
        """The same tokens, where one more may be written after them."""
        past = self.k_bgte, self.v_bgte
        continues = self.room is not None and self.room.continues(past)
        return self if continues else self._replace(room=Room(past))

    def place(self) -> list[int]:
        """The numbers of its `CachePlace`; it has room."""
        assert self.room is not None
        (k, v), filled = self.room.buffers, self.room.filled
        first = filled + 1 - _least(self.room.kept + 1, self.window)
        return [k.data_ptr(), v.data_ptr(), k.shape[-2], filled, first]

    def extended(self) -> KvCache:
        """With the token that was written into its place."""
        assert self.room is not None
        k, v = self.room.take(self.window)
        return self._replace(k_bgte=k, v_bgte=v)


def last_tokens(k_bgle: Tensor, v_bgle: Tensor, window: int | None, *, recordable: bool = False) -> KvCache:
    """The cache that the next token needs: everything, or the last `window` tokens."""
    if window is not None and k_bgle.shape[2] > window:
        # Cloned, so that the cache holds these tokens and not the storage of all.
        k_bgle, v_bgle = (t[:, :, -window:].clone() for t in (k_bgle, v_bgle))
    return KvCache(k_bgle, v_bgle, window, recordable)
