"""Kernels that run on a CPU, behind the very calls that CUDA's have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

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
