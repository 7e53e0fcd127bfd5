"""Names of a model's costs, as constraints, objectives and `match` write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from archsearch.spec.errors import nearest, shown

COSTS = ("params", "active_params", "flops_per_token", "state_bytes")

_NAME = re.compile(r"([a-z_]+)(?:@(\d{1,9}))?")


@dataclass(frozen=True)
class CostName:
    """`state_bytes@1024`: a cost of a model at a context length in tokens.

    context None stands for the longest length at which the candidate is scored. Costs are those of float32
    activations and caches.
    """

    metric: str
    context: int | None = None

    @classmethod
    def parse(cls, text: str) -> CostName:
        """Raises ValueError, with the nearest cost where the name is unknown."""
        match = _NAME.fullmatch(text.strip())
        if match is None or match[1] not in COSTS:
            word, _, context = text.strip().partition("@")
            if word in COSTS:
                raise ValueError(
                    f"{word}@: expected tokens after it, such as {word}@1024, found {shown(context)}"
                )
            raise ValueError(f"unknown cost {shown(word, 80)}{nearest(word, COSTS)}")
        if match[2] is not None and int(match[2]) < 1:
            raise ValueError(f"{text.strip()}: a context is at least 1 token")
        return cls(match[1], int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return self.metric if self.context is None else f"{self.metric}@{self.context}"
