"""The search-space language: a spec's values with holes in them, and how holes are filled.

A hole is a mapping whose one key starts with `$`. Holes nest; a hole inside an alternative exists only where
that alternative is taken.

    $choice: [a, b]           one of the values, which may be anything
    $int: [low, high, step]   a whole number, ends included; step is 1 unless given
    $float: [low, high]       a number
    $log: [low, high]         a number, uniform in its logarithm
    $simplex: [a, b, c]       name -> weight, uniform over all mixtures; or {of: names, min: {}, max: {}}
    $stack: {depth, of}       `depth` layers, each one of the entries `of` (a list there is its layers)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from archsearch.search.choosers import Chooser, Label
from archsearch.search.simplex import simplex_point
from archsearch.spec.errors import Path
from archsearch.spec.graph import MAX_LAYERS

_DIGITS = 4
"""Significant digits of numbers drawn from a range: what a person would write."""


class Size(NamedTuple):
    """Number of discrete layouts, and of continuous dimensions in the largest of them."""

    discrete: int
    continuous: int


class Hole(NamedTuple):
    """A hole as a person meets it. `name` leaves positions in stacks open; `path` is where the file has it.

    alternatives: every one of a categorical hole, the ends of a range; empty for the parts of a simplex.
    parents: (name, value) of the choices that must be taken for the hole to exist.
    """

    name: str
    path: Path
    range: str
    alternatives: tuple[Any, ...]
    parents: tuple[tuple[str, Any], ...]


@dataclass
class Filled:
    """A space's value with its holes filled.

    params: what was decided, by stable name; weights drawn for a simplex are there too, beside the numbers
    that code them.
    """

    value: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Path] = field(default_factory=dict)

    def where(self, path: Path) -> Path:
        """Path in the filled value -> path in the space's document."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]] + path[length:]
        return path


class Node:
    """A part of a space; `path` is its place in the document."""

    path: Path

    def fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        """The part with its holes filled, for the place `out` of the result."""
        filled.places[out] = self.path
        return self._fill(chooser, name, out, filled)

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        raise NotImplementedError

    def size(self) -> Size:
        raise NotImplementedError

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        raise NotImplementedError


@dataclass
class Plain(Node):
    """A value without holes."""

    path: Path
    value: Any

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        return self.value

    def size(self) -> Size:
        return Size(1, 0)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        return iter(())


@dataclass
class Keys(Node):
    """A mapping with holes somewhere in it."""

    path: Path
    items: dict[str, Node]

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        return {
            key: node.fill(chooser, joined(name, key), (*out, key), filled)
            for key, node in self.items.items()
        }

    def size(self) -> Size:
        return _product(node.size() for node in self.items.values())

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        for key, node in self.items.items():
            yield from node.holes(joined(name, key), parents)


@dataclass
class Listing(Node):
    """A list with holes somewhere in it. `splices`: the layers of a `$stack` become items of the list."""

    path: Path
    items: list[Node]
    splices: bool

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        found: list[Any] = []
        for i, node in enumerate(self.items):
            if self.splices and isinstance(node, Stack):
                found += node.layers(chooser, joined(name, i), out, len(found), filled)
            else:
                found.append(node.fill(chooser, joined(name, i), (*out, len(found)), filled))
        return found

    def size(self) -> Size:
        return _product(node.size() for node in self.items)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        for i, node in enumerate(self.items):
            yield from node.holes(joined(name, i), parents)


@dataclass
class Alternatives:
    """What a categorical hole may become, each under its label."""

    nodes: dict[Label, Node]

    def choose(self, chooser: Chooser, name: str, filled: Filled) -> tuple[Label, Node]:
        label = chooser.categorical(name, tuple(self.nodes))
        filled.params[name] = label
        return label, self.nodes[label]

    def base(self, name: str, label: Label) -> str:
        """The name under which holes of an alternative count; a `kind: {fields}` brings its own word."""
        node = self.nodes[label]
        own_word = isinstance(node, Keys) and list(node.items) == [label]
        return name if own_word else joined(name, label)

    def total(self) -> Size:
        sizes = [node.size() for node in self.nodes.values()]
        return Size(sum(size.discrete for size in sizes), max(size.continuous for size in sizes))

    def holes(self, name: str, path: Path, parents: tuple[tuple[str, Any], ...]) -> Iterator[Hole]:
        labels = tuple(self.nodes)
        yield Hole(name, path, " | ".join(map(str, labels)), labels, parents)
        for label, node in self.nodes.items():
            yield from node.holes(self.base(name, label), (*parents, (name, label)))


@dataclass
class Choice(Node):
    path: Path
    alternatives: Alternatives

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        label, node = self.alternatives.choose(chooser, name, filled)
        return node.fill(chooser, self.alternatives.base(name, label), out, filled)

    def size(self) -> Size:
        return self.alternatives.total()

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        return self.alternatives.holes(name, self.path, parents)


@dataclass
class Integer(Node):
    path: Path
    low: int
    high: int
    step: int

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        filled.params[name] = chooser.integer(name, self.low, self.high, self.step)
        return filled.params[name]

    def size(self) -> Size:
        return Size((self.high - self.low) // self.step + 1, 0)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        text = f"{self.low} to {self.high}" + (f" by {self.step}" if self.step > 1 else "")
        yield Hole(name, self.path, text, (self.low, self.high), parents)


@dataclass
class Real(Node):
    path: Path
    low: float
    high: float
    log: bool

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        drawn = chooser.real(name, self.low, self.high, self.log)
        filled.params[name] = drawn
        return min(self.high, max(self.low, float(f"{drawn:.{_DIGITS}g}")))

    def size(self) -> Size:
        return Size(1, 1)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        text = f"{self.low:g} to {self.high:g}" + (", logarithmic" if self.log else "")
        yield Hole(name, self.path, text, (self.low, self.high), parents)


@dataclass
class Simplex(Node):
    path: Path
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        units = []
        for part in self.names[:-1]:
            coded = joined(name, f"$simplex.{part}")
            filled.params[coded] = chooser.real(coded, 0.0, 1.0, False)
            units.append(filled.params[coded])
        weights = dict(zip(self.names, simplex_point(units, self.low, self.high), strict=True))
        filled.params.update({joined(name, part): weight for part, weight in weights.items()})
        return weights

    def size(self) -> Size:
        return Size(1, len(self.names) - 1)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        yield Hole(name, self.path, f"mixture of {', '.join(self.names)}", (), parents)


@dataclass
class Stack(Node):
    """`depth` layers, each chosen among the alternatives by a parameter of its own."""

    path: Path
    depth: Node
    depths: frozenset[int]
    alternatives: Alternatives
    groups: frozenset[Label]
    """Labels of the alternatives that are lists of layers."""

    def _fill(self, chooser: Chooser, name: str, out: Path, filled: Filled) -> Any:
        return self.layers(chooser, name, out, 0, filled)

    def layers(self, chooser: Chooser, name: str, out: Path, start: int, filled: Filled) -> list[Any]:
        """The layers, for the places `start`, `start + 1`, ... of the list at `out`."""
        name = joined(name, "$stack")
        depth = self.depth.fill(chooser, joined(name, "depth"), (*out, "$depth"), filled)
        found: list[Any] = []
        for position in range(depth):
            own = joined(name, position)
            label, node = self.alternatives.choose(chooser, own, filled)
            base = self.alternatives.base(own, label)
            if label not in self.groups:
                found.append(node.fill(chooser, base, (*out, start + len(found)), filled))
                continue
            members = node.items if isinstance(node, Listing) else [node]
            if isinstance(node, Plain):
                members = [Plain((*node.path, i), value) for i, value in enumerate(node.value)]
            for i, member in enumerate(members):
                place = (*out, start + len(found))
                found.append(member.fill(chooser, joined(base, i), place, filled))
        return found

    def size(self) -> Size:
        one = self.alternatives.total()
        layouts = sum(one.discrete**depth for depth in self.depths)
        return Size(layouts, max(self.depths) * one.continuous)

    def holes(self, name: str, parents: tuple[tuple[str, Any], ...] = ()) -> Iterator[Hole]:
        name = joined(name, "$stack")
        yield from self.depth.holes(joined(name, "depth"), parents)
        yield from self.alternatives.holes(joined(name, "*"), self.path, parents)


def joined(name: str, part: object) -> str:
    return f"{name}.{part}" if name else str(part)


def short_name(name: str) -> str:
    """A parameter's name for a narrow column: `3.mamba2.d_state` for one of a stack's fourth layer."""
    parts = name.split(".")
    if "$stack" in parts:
        return ".".join(parts[len(parts) - parts[::-1].index("$stack") :])
    return ".".join(parts[-2:] if len(parts) > 2 else parts[-1:])


def depths_of(node: Node) -> frozenset[int] | None:
    """Every depth that a stack's `depth` may take; None where one is not a whole number in 1..MAX_LAYERS."""
    if isinstance(node, Integer):
        if node.high > MAX_LAYERS:
            return None  # before the range is written out: it may not fit in memory
        found = set(range(node.low, node.high + 1, node.step))
    elif isinstance(node, Choice):
        inner = [depths_of(alternative) for alternative in node.alternatives.nodes.values()]
        if None in inner:
            return None
        found = set().union(*(depths for depths in inner if depths is not None))
    elif isinstance(node, Plain) and isinstance(node.value, int) and not isinstance(node.value, bool):
        found = {node.value}
    else:
        return None
    return frozenset(found) if min(found) >= 1 and max(found) <= MAX_LAYERS else None


def label_alternatives(values: Sequence[Any]) -> list[Label]:
    """A label for each: plain values are their own, others go by their kind, numbered where they share it."""
    labels: list[Label] = []
    for label in map(_label, values):
        unique, number = label, 1
        while unique in labels:
            number += 1
            unique = f"{label}#{number}"
        labels.append(unique)
    return labels


def _label(value: Any) -> Label:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "+".join(map(str, list(value)[:3])) or "{}"
    if isinstance(value, list):
        kinds = [str(_label(item)) for item in value]
        return "+".join(kinds[:4]) + (f"+{len(kinds) - 4} more" if len(kinds) > 4 else "") or "[]"
    assert isinstance(value, str | int | float | bool)
    return value


def _product(sizes: Iterator[Size]) -> Size:
    found = list(sizes)
    return Size(math.prod(size.discrete for size in found), sum(size.continuous for size in found))
