"""Kernels that run on a CPU, behind the very calls that CUDA's have."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from archsearch.mixers.attend import explicit_attention
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.kernels.table import OPERATIONS

DTYPES = ("torch.float64", "torch.float32", "torch.bfloat16")


def served(operation: str, function: Callable[..., Any], which: int = 0) -> Choice:
    """An operation by a function that keeps the convention of its `which`-th kernel."""
    call = partial(OPERATIONS[operation][which].call, function)
    return Choice(operation, "served", "a test", call, DTYPES, "cpu")


class Serving(Kernels):
    """The choices given, native torch for all else; whatever is asked for is noted in `asked`."""

    def __init__(self, *choices: Choice):
        super().__init__()
        object.__setattr__(self, "choices", {choice.operation: choice for choice in choices})
        object.__setattr__(self, "asked", [])

    def choose(
        self,
        operation: str,
        problem: str | None = None,
        forms: Collection[str] = frozenset(),
        needed: bool = True,
    ) -> Choice:
        self.asked.append((operation, problem, frozenset(forms)))
        native = Choice(operation, "torch", problem or "not served")
        return native if problem else self.choices.get(operation, native)


def attend_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Of a CPU: the caches' memory is taken by its address, as a kernel takes it."""
    *addresses, capacity, held, seen = place.tolist()
    caches = []
    for new, address in zip((k, v), addresses, strict=True):
        shape = *new.shape[:2], capacity, new.shape[2]
        memory = (ctypes.c_char * (math.prod(shape) * new.element_size())).from_address(address)
        cache = torch.frombuffer(memory, dtype=new.dtype).view(shape)
        cache[:, :, held] = new
        caches.append(cache[:, :, seen : held + 1])
    forms: Any = {"scale": scale, "softcap": softcap, "sinks_h": sinks}
    return explicit_attention(q[:, :, None], *caches, None, **forms)[:, :, 0]
