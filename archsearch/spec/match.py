"""Layouts of equal budget: `match: {params: 1.5M, by: mlp.expand}` solves a width that the layers leave free.

The cost of a spec is exact and grows with every width, so the width is found by bisection on the cost
itself, over the whole numbers that the layers can take: multiples of what heads and groups divide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

from archsearch.spec.cost import model_cost
from archsearch.spec.cost_names import COSTS, CostName
from archsearch.spec.entries import layer_kinds
from archsearch.spec.errors import nearest, quoted, refuse, shown, validate
from archsearch.spec.model import ModelSpec
from archsearch.spec.quantities import bytes_text, count_text, parse_quantity

MATCH = "match"
TOLERANCE = 0.01
"""How far from the budget a matched model may be, as a share of it."""

D_MODEL = "d_model"

_PROBES = (127, 53_760, 126_720, 6_720, 960)
"""Widths that tell what a width must be a multiple of: a prime, and numbers with many divisors."""
_LARGEST = 1 << 24
_LOOKED_UP = 128
"""Widths that are tried one by one where the search finds none."""


@dataclass(frozen=True)
class Match:
    """The budget `cost` = `target`, met by the width `field` of every layer of `kind` that leaves it free.

    kind None: by the model's own width, d_model.
    """

    cost: CostName
    target: float
    kind: str | None
    field: str

    @property
    def by(self) -> str:
        return f"{self.kind}.{self.field}" if self.kind else self.field

    def text(self, value: float) -> str:
        """An amount of the cost, for a person."""
        return bytes_text(value) if self.cost.metric == "state_bytes" else count_text(value)


def parse_match(value: Any) -> Match:
    """The `match` of an `arch` section. Raises `ValidationError` located at the part that cannot hold."""
    if not isinstance(value, Mapping):
        refuse((), f"expected a budget such as {{params: 1.5M, by: mlp.expand}}, found {shown(value)}")
    budgets = [key for key in value if key != "by"]
    for key in budgets:
        try:
            cost = CostName.parse(key)
        except ValueError:
            refuse((key,), f"unknown key {key!r}{nearest(key.partition('@')[0], (*COSTS, 'by'))}")
    if len(budgets) != 1:
        where = (budgets[1],) if budgets else ()
        refuse(where, f"expected one budget (one of: {quoted(COSTS)}), found {len(budgets)}")
    if "by" not in value:
        refuse((), "missing key 'by': the width that is free, such as mlp.expand or d_model")
    kind, field = _parse_by(value["by"])
    return Match(cost, _parse_target(value[budgets[0]], budgets[0]), kind, field)


def _parse_target(value: Any, key: str) -> float:
    if isinstance(value, str):
        try:
            value = parse_quantity(value)
        except ValueError as error:
            refuse((key,), str(error))
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse((key,), f"expected a number such as 1.5M, found {shown(value)}")
    if not 0 < value < math.inf:
        refuse((key,), f"a budget is above 0, found {shown(value)}")
    return float(value)


def _parse_by(value: Any) -> tuple[str | None, str]:
    if value == D_MODEL:
        return None, D_MODEL
    if not isinstance(value, str) or value.count(".") != 1:
        refuse(("by",), f"expected a field of a layer such as mlp.expand, or d_model, found {shown(value)}")
    kind, field = value.split(".")
    if kind not in layer_kinds():
        refuse(("by",), f"unknown layer {kind!r}{nearest(kind, layer_kinds())}")
    if field not in widths(kind):
        known = "is no number" if field in layer_kinds()[kind].model_fields else "is unknown"
        refuse(("by",), f"field {field!r} of {kind} {known}{nearest(field, widths(kind))}")
    return kind, field


def widths(kind: str) -> list[str]:
    """Fields of a layer that hold numbers: what `by` may name."""
    return [name for name in layer_kinds()[kind].model_fields if _number_type(kind, name)]


def _number_type(kind: str, field: str) -> type | None:
    """int or float, where the field holds a number."""
    annotation = layer_kinds()[kind].model_fields[field].annotation
    types = {part for arm in (annotation, *get_args(annotation)) for part in (arm, *get_args(arm))}
    return next((number for number in (float, int) if number in types), None)


def matched(value: Mapping[str, Any], match: Match, context: int) -> ModelSpec:
    """The model spec `value` with its free width solved.

    context: tokens at which costs are taken where the match names none.

    Raises `ValidationError` where the spec itself cannot hold, or no width meets the budget.
    """
    solver = _Solver(value, match, context)
    return solver.spec(solver.solve())


def freed(spec: ModelSpec, value: Any) -> dict[str, Any]:
    """The values of a finished spec with the width that the match `value` solves left open again."""
    match, found = parse_match(value), spec.dump()
    if match.kind is None:
        del found[D_MODEL]
    else:
        defaults = dict(_mapping(found.get("defaults")))
        fields = _mapping(defaults.pop(match.kind, None))
        kept = {name: field for name, field in fields.items() if name != match.field}
        found["defaults"] = defaults | ({match.kind: kept} if kept else {})
    return found | {MATCH: value}


class _Solver:
    """Widths in whole steps: of the field itself, or of `field * d_model` where the field is a factor."""

    def __init__(self, value: Mapping[str, Any], match: Match, context: int):
        self.value = value
        self.match = match
        self.context = match.cost.context or context
        self.scale = 1
        self._costs: dict[int, float | None] = {}
        self._first: ValidationError | None = None
        defaults = value.get("defaults") or {}
        given = value if match.kind is None else _mapping(_mapping(defaults).get(match.kind))
        path = (D_MODEL,) if match.kind is None else ("defaults", match.kind, match.field)
        if match.field in given:
            refuse(path, f"match solves {match.by}; leave it out here")
        self.is_factor = match.kind is not None and _number_type(match.kind, match.field) is float
        if self.is_factor and isinstance(value.get(D_MODEL), int):
            self.scale = max(1, value[D_MODEL])

    def width(self, steps: int) -> int | float:
        return steps / self.scale if self.is_factor else steps

    def spec(self, steps: int) -> ModelSpec:
        match, value = self.match, dict(self.value)
        if match.kind is None:
            value[D_MODEL] = self.width(steps)
        else:
            defaults = _mapping(value.get("defaults"))
            fields = {**_mapping(defaults.get(match.kind)), match.field: self.width(steps)}
            value["defaults"] = {**defaults, match.kind: fields}
        return validate(ModelSpec, value)

    def cost(self, steps: int) -> float | None:
        """None where the layers cannot have this width."""
        if steps not in self._costs:
            try:
                total = model_cost(self.spec(steps), self.context).total
                self._costs[steps] = float(total.as_dict()[self.match.cost.metric])
            except ValidationError as error:
                self._first = self._first or error
                self._costs[steps] = None
            except ValueError as error:  # a context beyond the learned positions
                refuse((MATCH,), str(error))
        return self._costs[steps]

    def solve(self) -> int:
        try:
            return self._search()
        except ValidationError:
            # Costs need not grow with a field that has an end, or that must divide another one.
            if self.is_factor or self.match.kind is None or self._is_flat():
                raise
            if (found := self._looked_up()) is None:
                raise
            return found

    def _search(self) -> int:
        grain = self._grain()
        low, high = self._bracket(grain)
        low, high = self._narrow(low, high, grain)
        near = min((low, high), key=self._distance)
        if self._meets(near):
            return near
        self._refuse(f"the nearest are {self._at(low)} and {self._at(high)}")

    def _looked_up(self) -> int | None:
        """The best of the small widths, each tried; None where none meets the budget and the search for it
        has said why. Raises where that could not even begin."""
        possible = [steps for steps in range(1, _LOOKED_UP + 1) if self.cost(steps) is not None]
        if not possible:
            return None
        near = min(possible, key=self._distance)
        if self._meets(near):
            return near
        if any(self.cost(probe) is not None for probe in _PROBES):
            return None
        below = [steps for steps in possible if self._known(steps) <= self.match.target]
        above = [steps for steps in possible if self._known(steps) > self.match.target]
        nearest_two = [min(side, key=self._distance) for side in (below, above) if side]
        self._refuse(f"the nearest are {' and '.join(map(self._at, nearest_two))}")

    def _distance(self, steps: int) -> float:
        return abs(self._known(steps) - self.match.target)

    def _meets(self, steps: int) -> bool:
        return self._distance(steps) <= TOLERANCE * self.match.target

    def _grain(self) -> int:
        """The number that every possible width is a multiple of."""
        probe = next((probe for probe in _PROBES if self.cost(probe) is not None), None)
        if probe is None:
            assert self._first is not None
            raise self._first
        for factor in (2, 3, 5, 7, 11, 127):
            while probe % factor == 0 and self.cost(probe // factor) is not None:
                probe //= factor
        return probe if self.cost(probe + 1) is None else 1

    def _bracket(self, grain: int) -> tuple[int, int]:
        """Widths below and above the budget."""
        low = grain
        while self.cost(low) is None:  # a field may begin above 1
            low *= 2
        high = 2 * low
        if self._meets(low):
            return low, low
        if self._is_flat():
            self._refuse_useless(low)
        if self._known(low) > self.match.target:
            self._refuse(f"the smallest is {self._at(low)}")
        while high <= _LARGEST and (cost := self.cost(high)) is not None and cost < self.match.target:
            gained = (cost - self._known(low)) / (high - low)
            # Costs grow at least in proportion, so the line through the last two reaches too far or just so;
            # where they stand still, they may grow again.
            reach = high + (self.match.target - cost) / gained if gained > 0 else 2 * high
            low, high = high, grain * max(2 * high // grain, min(_LARGEST, math.ceil(reach)) // grain + 1)
            while high > 2 * low and self.cost(high) is None:
                high = max(2 * low, grain * (high // grain // 2))
            if self.cost(high) is None:
                high = self._possible(high, low, high + _LOOKED_UP * grain, grain) or high
        if high > _LARGEST or self.cost(high) is None:
            self._refuse(f"the largest tried is {self._at(low)}")
        return low, high

    def _is_flat(self) -> bool:
        """Whether every width so far, and those far apart that tell the grain, costs the same."""
        for probe in _PROBES:
            self.cost(probe)
        return len({cost for cost in self._costs.values() if cost is not None}) == 1

    def _narrow(self, low: int, high: int, grain: int) -> tuple[int, int]:
        """Neighbours below and above the budget."""
        halve = False
        while high - low > grain:
            share = (self.match.target - self._known(low)) / (self._known(high) - self._known(low) or 1.0)
            guess = low + (high - low) // 2 if halve else low + round(share * (high - low))
            middle = self._possible(
                min(high - grain, max(low + grain, guess // grain * grain)), low, high, grain
            )
            if middle is None:
                return low, high
            if self._known(middle) <= self.match.target:
                low = middle
            else:
                high = middle
            halve = not halve
        return low, high

    def _possible(self, near: int, low: int, high: int, grain: int) -> int | None:
        """A width between the two that the layers can have, above `near` or else below it."""
        above = range(near, min(high, near + _LOOKED_UP * grain), grain)
        below = range(near - grain, max(low, near - _LOOKED_UP * grain), -grain)
        return next((steps for steps in (*above, *below) if self.cost(steps) is not None), None)

    def _known(self, steps: int) -> float:
        cost = self.cost(steps)
        assert cost is not None
        return cost

    def _at(self, steps: int) -> str:
        return f"{self.match.text(self._known(steps))} ({self.match.by} {self.width(steps):.6g})"

    def _refuse_useless(self, steps: int) -> NoReturn:
        cost = self.match.text(self._known(steps))
        self._refuse(f"it is {cost} whatever {self.match.by} is: no layer takes it from match")

    def _refuse(self, why: str) -> NoReturn:
        budget = f"{self.match.cost} = {self.match.text(self.match.target)}"
        refuse((MATCH,), f"no {self.match.by} meets {budget} within {TOLERANCE:.0%}: {why}")


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or none where something else stands in its place: the spec's own check will say so."""
    return value if isinstance(value, Mapping) else {}
