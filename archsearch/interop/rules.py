"""Where each weight comes from: the source's tensors, ours, and how the ones become the other and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Shape = Sequence[int]


@dataclass(frozen=True)
class Join:
    """`together`: their tensors -> ours. `apart`: ours and the shapes of theirs -> theirs."""

    together: Callable[[list[Tensor]], Tensor]
    apart: Callable[[Tensor, list[Shape]], list[Tensor]]


def _split(ours: Tensor, shapes: list[Shape]) -> list[Tensor]:
    return list(ours.split([shape[0] for shape in shapes]))


SAME = Join(lambda theirs: theirs[0], lambda ours, shapes: [ours])
CONCAT = Join(torch.cat, _split)
"""One below the other, along the first axis."""
CONV = Join(lambda theirs: theirs[0].squeeze(1), lambda ours, shapes: [ours.unsqueeze(1)])
"""A depthwise convolution's (channels, 1, width), here (channels, width)."""
FLAT = Join(lambda theirs: theirs[0].flatten(), lambda ours, shapes: [ours.reshape(tuple(shapes[0]))])
"""The source's axes one after another in a single one."""
HEADS = Join(lambda theirs: theirs[0].flatten(0, 1), lambda ours, shapes: [ours.reshape(tuple(shapes[0]))])
"""The source's axis of heads, and the next one, in a single one."""
STACK = Join(torch.stack, lambda ours, shapes: list(ours.unbind()))
"""One tensor an expert, here side by side."""


def rows(order: Tensor) -> Join:
    """One below the other, then row order[i] at place i: for projections that interleave their heads."""
    back = torch.argsort(order)
    return Join(
        lambda theirs: torch.cat(theirs)[order],
        lambda ours, shapes: _split(ours[back], shapes),
    )


@dataclass(frozen=True)
class Rule:
    """One of our tensors, by its name in a state dict, and the source's that it is made of.

    ours: None for what the source keeps beside its weights though it follows from the config.
    """

    theirs: tuple[str, ...]
    ours: str | None
    join: Join = SAME

    def under(self, prefix: str) -> Rule:
        """The rule with our name inside a larger module."""
        return replace(self, ours=f"{prefix}.{self.ours}") if self.ours else self


Rules = tuple[Rule, ...]


def linear(theirs: str | Iterable[str], ours: str, bias: Any = False, join: Join = CONCAT) -> Rules:
    """A linear layer (or several that are one here): its weight, and its bias where it has one."""
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    join = SAME if len(names) == 1 and join is CONCAT else join
    parts = ("weight", "bias") if bias else ("weight",)
    return tuple(Rule(tuple(f"{name}.{part}" for name in names), f"{ours}.{part}", join) for part in parts)
