"""Constraints on a candidate's cost, such as `params <= 2M` or `state_bytes@1024 <= 64KiB`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from archsearch.search.costs import CandidateCosts
from archsearch.spec.cost_names import CostName
from archsearch.spec.errors import shown
from archsearch.spec.quantities import parse_quantity

OPERATORS = ("<=", ">=", "<", ">")
INVALID = "a valid combination"
"""The constraint that candidates break whose parts do not fit together."""

_OPERATOR = re.compile(r"[<>=!]+")


@dataclass(frozen=True)
class Constraint:
    """`name operator limit`, as written in `text`."""

    text: str
    name: CostName
    operator: str
    limit: float

    def violation(self, costs: CandidateCosts) -> float:
        """How far a candidate is beyond the limit, as a share of the limit; 0 where the constraint holds.

        A candidate that cannot run at the constraint's context at all is beyond it by 1.
        """
        try:
            value = costs(self.name)
        except ValueError:
            return 1.0
        excess = value - self.limit if self.operator.startswith("<") else self.limit - value
        if excess < 0 or (excess == 0 and self.operator.endswith("=")):
            return 0.0
        # A strict bound that is met exactly is broken by as little as a sampler can notice.
        return max(excess / (self.limit or 1.0), 1e-9)


def parse_constraint(text: str) -> Constraint:
    """Raises ValueError saying which part cannot be read and what was expected there."""
    text = " ".join(text.split())
    operator, *more = _OPERATOR.findall(text) or [""]
    name, _, limit = (part.strip() for part in text.partition(operator or " "))
    if more or not (operator and name and limit):
        raise ValueError(
            f"expected a cost, an operator and a limit such as 'params <= 2M', found {shown(text, 80)}"
        )
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}; expected one of: {', '.join(OPERATORS)}")
    return Constraint(text, CostName.parse(name), operator, parse_quantity(limit))


def violations(constraints: Iterable[Constraint], costs: CandidateCosts) -> dict[str, float]:
    """Every constraint, by its text, with its violation; > 0 where it is broken."""
    return {constraint.text: constraint.violation(costs) for constraint in constraints}
