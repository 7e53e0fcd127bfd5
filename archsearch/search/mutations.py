"""Changing a candidate a little, within what its space can express.

A mutation works on the recorded choices, not on the spec, so that every child is a candidate of the space:
what it leaves open, or what the space no longer allows, is chosen anew, from the parent's choices for the
same field of the same kind of layer where there are any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from archsearch.search.choosers import Label, RandomChooser, general_name
from archsearch.search.holes import Hole

Params = dict[str, Any]

STEP = 0.2
"""Standard deviation of a changed number, as a share of its range."""

_PLACE = re.compile(r"(.*)\.(\d+)")
_PARALLEL = "parallel"


class Mutator:
    """Mutations of the candidates of a space with these holes."""

    def __init__(self, holes: Iterable[Hole]):
        self.holes = {hole.name: hole for hole in holes}

    def child(self, parent: Params, rng: np.random.Generator) -> MutatedChooser:
        """Decides a child: one mutation, or two or three."""
        params, changed = dict(parent), set[str]()
        for _ in range(1 + int(rng.choice(3, p=[0.6, 0.3, 0.1]))):
            params = self._mutate(params, changed, rng)
        return MutatedChooser(params, parent, changed, rng)

    def _mutate(self, params: Params, changed: set[str], rng: np.random.Generator) -> Params:
        places = self._places(params)
        lists = [names for names in places.values() if len(names) > 1]
        stacks = [root for root in places if self._depths(root, params)]
        toggles = [name for name in params if self._sides(name)]
        possible: list[Callable[[], Params]] = []
        if lists:
            possible += [lambda: _swap(params, *_two(lists, rng)), lambda: _copy(params, *_two(lists, rng))]
        if stacks:
            possible.append(lambda: self._resize(params, stacks[rng.integers(len(stacks))], rng))
        if toggles:
            possible.append(lambda: self._toggle(params, toggles[rng.integers(len(toggles))], rng))
        fields = [name for name in params if not _is_weight(name, params)]
        if fields and (not possible or rng.random() < 0.5):
            changed.add(fields[rng.integers(len(fields))])
            return params
        return possible[rng.integers(len(possible))]() if possible else params

    def _places(self, params: Params) -> dict[str, list[str]]:
        """Choices that may trade places: those of one list, with the same alternatives; by list."""
        found: dict[str, list[str]] = {}
        for name in params:
            match, hole = _PLACE.fullmatch(name), self.holes.get(general_name(name))
            if match is not None and hole is not None:
                labels = "" if name.rpartition(".")[0].endswith("$stack") else f"|{hole.alternatives}"
                found.setdefault(match[1] + labels, []).append(name)
        return found

    def _depths(self, root: str, params: Params) -> tuple[Any, ...]:
        """Depths that the stack at `root` may have, where it may have several."""
        hole = self.holes.get(general_name(f"{root}.depth"))
        return hole.alternatives if hole is not None and f"{root}.depth" in params else ()

    def _resize(self, params: Params, root: str, rng: np.random.Generator) -> Params:
        """Insert a new layer, a copy of one, or delete one."""
        depth, depths = params[f"{root}.depth"], self._depths(root, params)
        grows = rng.random() < 0.6 if min(depths) < depth < max(depths) else depth < max(depths)
        place = int(rng.integers(depth))
        if not grows:
            return _without(params, root, place) | {f"{root}.depth": depth - 1}
        copied = _subtree(params, f"{root}.{place}") if rng.random() < 0.5 else {}
        opened = _shifted(params, root, place + 1, 1)
        return opened | _planted(copied, f"{root}.{place + 1}") | {f"{root}.depth": depth + 1}

    def _sides(self, name: str) -> tuple[list[Label], list[Label]] | None:
        """The parallel alternatives of a choice, and the others, where it has both."""
        hole = self.holes.get(general_name(name))
        if hole is None or not any(isinstance(label, str) for label in hole.alternatives):
            return None
        parallel = [label for label in hole.alternatives if _is_parallel(label)]
        others = [label for label in hole.alternatives if not _is_parallel(label)]
        return (parallel, others) if parallel and others else None

    def _toggle(self, params: Params, name: str, rng: np.random.Generator) -> Params:
        """Move a layer between sequential and parallel."""
        sides = self._sides(name)
        assert sides is not None
        into = sides[1] if _is_parallel(params[name]) else sides[0]
        return _uprooted(params, name) | {name: into[rng.integers(len(into))]}


class MutatedChooser(RandomChooser):
    """Takes `params` where they are possible; what is missing, from the same field in `donor`, or at random.

    changed: parameters that must become another value: a neighbour, for numbers.
    """

    def __init__(self, params: Params, donor: Params, changed: set[str], rng: np.random.Generator):
        super().__init__(rng)
        self.params = params
        self.changed = changed
        self.donor = {_field(name): value for name, value in donor.items()}

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        given = self._given(name)
        known = [choice for choice in choices if choice == given and type(choice) is type(given)]
        if not known:
            return super().categorical(name, choices)
        others = [choice for choice in choices if choice is not known[0]]
        return others[self.rng.integers(len(others))] if name in self.changed and others else known[0]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        given = self._given(name)
        if not isinstance(given, int) or not low <= given <= high or (given - low) % step:
            return super().integer(name, low, high, step)
        if name not in self.changed or low == high:
            return given
        reach = max(1, round(STEP * (high - low) / step))
        moved = given + step * int(self.rng.integers(1, reach + 1)) * int(self.rng.choice([-1, 1]))
        # A step beyond an end is taken the other way.
        return moved if low <= moved <= high else min(high, max(low, 2 * given - moved))

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        given = self._given(name)
        if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
            return super().real(name, low, high, log)
        if name not in self.changed:
            return float(given)
        if log:
            spread = STEP * np.log(high / low)
            return float(np.clip(given * np.exp(self.rng.normal(0, spread)), low, high))
        return float(np.clip(given + self.rng.normal(0, STEP * (high - low)), low, high))

    def _given(self, name: str) -> Any:
        return self.params[name] if name in self.params else self.donor.get(_field(name))


def _field(name: str) -> str:
    """`mamba2.d_state` of a layer anywhere."""
    return ".".join(name.split(".")[-2:])


def _is_parallel(label: Any) -> bool:
    return isinstance(label, str) and _PARALLEL in label.partition("#")[0].split("+")


def _is_weight(name: str, params: Params) -> bool:
    """Whether it only tells what a mixture's coded numbers came to."""
    return any(other.startswith(f"{name.rpartition('.')[0]}.$simplex.") for other in params)


def _two(lists: list[list[str]], rng: np.random.Generator) -> tuple[str, str]:
    names = lists[rng.integers(len(lists))]
    a, b = rng.choice(len(names), size=2, replace=False)
    return names[a], names[b]


def _subtree(params: Params, root: str) -> Params:
    """What is decided at and below `root`, under names without it."""
    return {name[len(root) :]: v for name, v in params.items() if name == root or name.startswith(f"{root}.")}


def _uprooted(params: Params, root: str) -> Params:
    return {name: v for name, v in params.items() if name != root and not name.startswith(f"{root}.")}


def _planted(tree: Params, root: str) -> Params:
    return {root + name: value for name, value in tree.items()}


def _swap(params: Params, a: str, b: str) -> Params:
    rest = _uprooted(_uprooted(params, a), b)
    return rest | _planted(_subtree(params, a), b) | _planted(_subtree(params, b), a)


def _copy(params: Params, a: str, b: str) -> Params:
    return _uprooted(params, b) | _planted(_subtree(params, a), b)


def _without(params: Params, root: str, place: int) -> Params:
    return _shifted(_uprooted(params, f"{root}.{place}"), root, place + 1, -1)


def _shifted(params: Params, root: str, first: int, by: int) -> Params:
    """The layers of a stack from `first` on, `by` places further."""
    moved: Params = {}
    for name, value in params.items():
        place, dot, rest = name[len(root) + 1 :].partition(".")
        if name.startswith(f"{root}.") and place.isdigit() and int(place) >= first:
            name = f"{root}.{int(place) + by}{dot}{rest}"
        moved[name] = value
    return moved
