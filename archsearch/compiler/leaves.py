"""What a state is made of, as a recorded step takes it: tensors, which keep their shapes, and what grows by a
token a step, of which numbers tell where it is and how far it has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from archsearch.mixers.cache import CachePlace, KvCache, Position

Growing = KvCache | Position

NUMBERS = 5
"""Of what grows: a cache's place, or a position."""


class Leaves(NamedTuple):
    tensors: list[Tensor]
    growing: list[Growing]

    @classmethod
    def of(cls, state: Any, like: Any = None) -> Leaves:
        """In the order of a walk through nested tuples. like: a state whose parts say which are which, where
        those of this one that grow are places."""
        found = cls([], [])
        found._gather(state, state if like is None else like)
        return found

    def _gather(self, state: Any, like: Any) -> None:
        if isinstance(like, Tensor):
            self.tensors.append(state)
        elif isinstance(like, Growing):
            self.growing.append(state)
        elif isinstance(like, tuple | list):
            for part, its in zip(state, like, strict=True):
                self._gather(part, its)

    def forms(self) -> list[Any]:
        """What must not change from token to token."""
        growing = [_form(part) for part in self.growing]
        return [*((tensor.shape, tensor.dtype) for tensor in self.tensors), *growing]


def rebuilt(like: Any, tensors: Iterator[Tensor], growing: Iterator[Any]) -> Any:
    """A state made as another one is, of other leaves."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, Growing):
        return next(growing)
    if not isinstance(like, tuple | list):
        return like
    parts = [rebuilt(part, tensors, growing) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def is_recordable(before: Any, after: Any) -> bool:
    """Whether a state is of such leaves alone and stays so: another number would be recorded as it is."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and before.dtype == after.dtype
    if isinstance(before, KvCache) and isinstance(after, KvCache):
        return before.recordable and _form(before) == _form(after)
    if isinstance(before, Position) and isinstance(after, Position):
        return after == before + 1
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        return all(map(is_recordable, before, after))
    return before is None and after is None


def with_room(growing: list[Growing]) -> list[Growing]:
    """The same, where caches have room for a token more."""
    return [part.with_room() if isinstance(part, KvCache) else part for part in growing]


def a_token_later(growing: list[Growing]) -> list[Growing]:
    """The same, when a token has been written."""
    return [part.extended() if isinstance(part, KvCache) else Position(part + 1) for part in growing]


def last_position(growing: list[Growing]) -> int:
    return max((part for part in growing if isinstance(part, Position)), default=0)


class Numbers:
    """The numbers of all that grows, on the device; what a recorded step reads."""

    def __init__(self, growing: list[Growing], device: torch.device):
        with torch.inference_mode(False):
            self._rows_n5 = torch.zeros(len(growing), NUMBERS, dtype=torch.int64, device=device)
        rows = zip(growing, self._rows_n5.unbind(), strict=True)
        self.places = [CachePlace(row) if isinstance(part, KvCache) else row[0] for part, row in rows]

    def tell(self, growing: list[Growing]) -> None:
        if growing:
            rows = [
                part.place() if isinstance(part, KvCache) else [part, *[0] * (NUMBERS - 1)]
                for part in growing
            ]
            pinned = torch.tensor(rows, dtype=torch.int64, pin_memory=self._rows_n5.is_cuda)
            self._rows_n5.copy_(pinned, non_blocking=True)


def _form(part: Growing) -> Any:
    if isinstance(part, Position):
        return "position"
    return [(t.shape[:2], t.shape[3:], t.dtype) for t in (part.k_bgte, part.v_bgte)]
