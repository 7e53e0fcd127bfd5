"""Plain values with holes -> the tree of `archsearch.search.holes`, refusing what cannot be filled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from archsearch.search.holes import (
    Alternatives,
    Choice,
    Integer,
    Keys,
    Listing,
    Node,
    Plain,
    Real,
    Simplex,
    Stack,
    depths_of,
    label_alternatives,
)
from archsearch.search.simplex import MAX_CAPPED
from archsearch.spec.errors import Path, nearest, refuse, shown
from archsearch.spec.graph import MAX_LAYERS
from archsearch.spec.quantities import parse_count

MAX_ALTERNATIVES = 1000
MAX_PARTS = 64
MAX_WHOLE = 1 << 53
"""The largest whole number up to which floating-point ones are exact."""


def parse_space(value: Any, path: Path = ()) -> Node:
    """The tree of `value`. Raises `ValidationError` located at the hole's part that cannot hold."""
    if isinstance(value, Mapping):
        words = [key for key in value if key.startswith("$")]
        if words:
            return _parse_hole(value, words, path)
        items = {key: parse_space(item, (*path, key)) for key, item in value.items()}
        if all(isinstance(node, Plain) for node in items.values()):
            return Plain(path, value)
        return Keys(path, items)
    if isinstance(value, list):
        if len(value) > MAX_LAYERS:
            # No model is that deep, and every try of it would take seconds.
            refuse(path, f"expected at most {MAX_LAYERS:,} entries, found {shown(value)}")
        nodes = [parse_space(item, (*path, i)) for i, item in enumerate(value)]
        if all(isinstance(node, Plain) for node in nodes):
            return Plain(path, value)
        # A branch is a layer or a list of layers, so there a stack is one branch, not several.
        return Listing(path, nodes, splices=not path or path[-1] != "branches")
    return Plain(path, value)


def find_hole(value: Any, path: Path = ()) -> Path | None:
    """The path of the first hole in `value`, if there is one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key.startswith("$"):
                return (*path, key)
            if (found := find_hole(item, (*path, key))) is not None:
                return found
    if isinstance(value, list):
        for i, item in enumerate(value):
            if (found := find_hole(item, (*path, i))) is not None:
                return found
    return None


def _parse_hole(value: Mapping[str, Any], words: list[str], path: Path) -> Node:
    word = words[0]
    if word not in _PARSERS:
        refuse((*path, word), f"unknown hole {word!r}{nearest(word, _PARSERS)}")
    if len(value) > 1:
        other = next(key for key in value if key != word)
        refuse((*path, other), f"a hole is a mapping with one key, found {other!r} beside {word!r}")
    return _PARSERS[word](value[word], path, (*path, word))


def _parse_choice(value: Any, path: Path, inside: Path) -> Node:
    return Choice(path, _parse_alternatives(value, inside))


def _parse_alternatives(value: Any, inside: Path) -> Alternatives:
    if not isinstance(value, list):
        refuse(inside, f"expected a list of alternatives, found {shown(value)}")
    if not value:
        refuse(inside, "expected at least one alternative, found an empty list")
    if len(value) > MAX_ALTERNATIVES:
        refuse(inside, f"{len(value):,} alternatives; expected at most {MAX_ALTERNATIVES:,}")
    for i, item in enumerate(value):
        if isinstance(item, float) and not math.isfinite(item):
            refuse((*inside, i), f"expected a finite number, found {shown(item)}")
        if item in value[:i]:
            refuse((*inside, i), f"{shown(item)} is listed twice")
    nodes = [parse_space(item, (*inside, i)) for i, item in enumerate(value)]
    return Alternatives(dict(zip(label_alternatives(value), nodes, strict=True)))


def _parse_int(value: Any, path: Path, inside: Path) -> Node:
    numbers = _numbers(value, inside, 2, 3, "[low, high] or [low, high, step]")
    for i, number in enumerate(numbers):
        if abs(number) > MAX_WHOLE:
            refuse((*inside, i), f"expected at most {MAX_WHOLE:,} either way, found {shown(value[i])}")
        if number != int(number):
            refuse((*inside, i), f"expected a whole number, found {shown(value[i])}")
    low, high, step = (int(number) for number in [*numbers, 1][:3])
    if step < 1:
        refuse((*inside, 2), f"the step must be at least 1, found {step}")
    _check_order(low, high, inside)
    return Integer(path, low, low + (high - low) // step * step, step)


def _parse_float(value: Any, path: Path, inside: Path) -> Node:
    low, high = _numbers(value, inside, 2, 2, "[low, high]")
    _check_order(low, high, inside)
    return Real(path, low, high, log=False)


def _parse_log(value: Any, path: Path, inside: Path) -> Node:
    low, high = _numbers(value, inside, 2, 2, "[low, high]")
    if low <= 0:
        refuse((*inside, 0), f"a logarithmic range starts above 0, found {shown(value[0])}")
    _check_order(low, high, inside)
    return Real(path, low, high, log=True)


def _numbers(value: Any, inside: Path, least: int, most: int, form: str) -> list[float]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        refuse(inside, f"expected {form}, found {shown(value)}")
    return [_number(item, (*inside, i)) for i, item in enumerate(value)]


def _number(value: Any, path: Path) -> float:
    if isinstance(value, str):
        try:
            return parse_count(value)
        except ValueError as error:
            refuse(path, str(error))
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(path, f"expected a number, found {shown(value)}")
    if not math.isfinite(value):
        refuse(path, f"expected a finite number, found {shown(value)}")
    return value


def _check_order(low: float, high: float, inside: Path) -> None:
    if low >= high:
        refuse((*inside, 1), f"the high end must be above the low end {low:g}, found {high:g}")


def _parse_simplex(value: Any, path: Path, inside: Path) -> Node:
    names, where = value, inside
    bounds: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("of", "min", "max"):
                refuse((*inside, key), f"unknown key {key!r}{nearest(key, ('of', 'min', 'max'))}")
        if "of" not in value:
            refuse(inside, "missing key 'of'")
        names, where, bounds = value["of"], (*inside, "of"), value
    if not isinstance(names, list) or not 2 <= len(names) <= MAX_PARTS:
        refuse(where, f"expected a list of 2 to {MAX_PARTS} names, found {shown(names)}")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            refuse((*where, i), f"expected a name, found {shown(name)}")
        if name in names[:i]:
            refuse((*where, i), f"{name!r} is listed twice")
    low = _parse_bounds(bounds.get("min"), names, 0.0, (*inside, "min"))
    high = _parse_bounds(bounds.get("max"), names, 1.0, (*inside, "max"))
    _check_bounds(names, low, high, bounds, inside)
    return Simplex(path, tuple(names), tuple(low), tuple(high))


def _parse_bounds(value: Any, names: list[str], default: float, path: Path) -> list[float]:
    if value is None:
        return [default] * len(names)
    if not isinstance(value, Mapping):
        refuse(path, f"expected a mapping of name: weight, found {shown(value)}")
    for name, bound in value.items():
        if name not in names:
            refuse((*path, name), f"unknown name {name!r}{nearest(name, names)}")
        if not 0 <= _number(bound, (*path, name)) <= 1:
            refuse((*path, name), f"a weight is between 0 and 1, found {shown(bound)}")
    return [float(value.get(name, default)) for name in names]


def _check_bounds(
    names: list[str], low: list[float], high: list[float], given: Mapping[str, Any], inside: Path
) -> None:
    for name, least, most in zip(names, low, high, strict=True):
        if least > most:
            refuse((*inside, "max", name), f"{name}: the max {most:g} is below the min {least:g}")
    if math.fsum(low) > 1 + 1e-9:
        refuse((*inside, "min"), f"the minima sum to {math.fsum(low):g}, more than 1")
    if math.fsum(high) < 1 - 1e-9:
        refuse((*inside, "max"), f"the maxima sum to {math.fsum(high):g}, less than 1")
    if "max" in given and len(names) > MAX_CAPPED:
        refuse((*inside, "max"), f"max takes at most {MAX_CAPPED} names, found {len(names)}")


def _parse_stack(value: Any, path: Path, inside: Path) -> Node:
    if not isinstance(value, Mapping):
        refuse(inside, f"expected {{depth: ..., of: [...]}}, found {shown(value)}")
    for key in value:
        if key not in ("depth", "of"):
            refuse((*inside, key), f"unknown key {key!r}{nearest(key, ('depth', 'of'))}")
    for key in ("depth", "of"):
        if key not in value:
            refuse(inside, f"missing key {key!r}")
    depth = parse_space(value["depth"], (*inside, "depth"))
    depths = depths_of(depth)
    if depths is None:
        found = value["depth"]
        text = shown(found) if isinstance(depth, Plain) else "a hole that may be something else"
        refuse((*inside, "depth"), f"expected whole numbers from 1 to {MAX_LAYERS:,}, found {text}")
    alternatives = _parse_alternatives(value["of"], (*inside, "of"))
    written = dict(zip(alternatives.nodes, value["of"], strict=True))
    for i, (label, item) in enumerate(written.items()):
        if item == []:
            refuse((*inside, "of", i), "expected a layer or a list of layers, found an empty list")
        if isinstance(alternatives.nodes[label], Stack):
            refuse((*inside, "of", i), "a stack inside a stack; list its entries in `of` directly")
    groups = frozenset(label for label, item in written.items() if isinstance(item, list))
    return Stack(inside, depth, depths, alternatives, groups)


_PARSERS = {
    "$choice": _parse_choice,
    "$int": _parse_int,
    "$float": _parse_float,
    "$log": _parse_log,
    "$simplex": _parse_simplex,
    "$stack": _parse_stack,
}
