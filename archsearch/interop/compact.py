"""A list of layers as a person would write it: defaults said once, runs as `repeat`, bare words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from archsearch.spec.entries import layer_kinds

Entry = Any
"""`{kind: fields}`, or a share; in a parallel's `branches` and a sequential's `layers` stand more of them."""

NESTED = ("branches", "layers")


def compact(layers: list[Entry]) -> dict[str, Any]:
    """`layers`, and `defaults` where entries of a kind agree: the same model in fewer lines."""
    layers = _each(layers, _without_defaults)
    shared = _agreed(layers)
    layers = _each(layers, lambda kind, fields: _rest(kind, fields, shared.get(kind, {})))
    values: dict[str, Any] = {"defaults": shared} if shared else {}
    return values | {"layers": runs(layers)}


def runs(entries: list[Entry]) -> list[Entry]:
    """The same stack with `repeat` for what recurs, the longest stretch first."""
    start, period, count = max(_stretches(entries), key=_saved, default=(0, 1, 1))
    if count == 1:
        return entries
    end = start + period * count
    once = {"repeat": count, "layers": runs(entries[start : start + period])}
    return [*runs(entries[:start]), once, *runs(entries[end:])]


def _stretches(entries: list[Entry]) -> Iterator[tuple[int, int, int]]:
    """(start, period, count) of every place where `period` entries come `count` times in a row."""
    for period in range(1, len(entries) // 2 + 1):
        for start in range(len(entries) - 2 * period + 1):
            unit, count = entries[start : start + period], 1
            while entries[start + count * period : start + (count + 1) * period] == unit:
                count += 1
            if count > 1:
                yield start, period, count


def _saved(stretch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Entries that a repeat spares; of equals, the one of the shorter period, in step with the stack."""
    start, period, count = stretch
    return period * (count - 1), -period, -(start % period)


def _each(entries: list[Entry], change: Callable[[str, dict[str, Any]], Entry]) -> list[Entry]:
    """Every layer changed, those inside others first; shares are as they are."""
    changed = []
    for entry in entries:
        if "share" in entry:
            changed.append(entry)
            continue
        ((kind, fields),) = entry.items()
        if "branches" in fields:
            fields = fields | {"branches": [_each(branch, change) for branch in fields["branches"]]}
        elif "layers" in fields:
            fields = fields | {"layers": _each(fields["layers"], change)}
        changed.append(change(kind, fields))
    return changed


def _without_defaults(kind: str, fields: dict[str, Any]) -> Entry:
    """The entry without what would be so anyway."""
    known = layer_kinds()[kind].model_fields if kind in layer_kinds() else {}
    return {kind: {k: v for k, v in fields.items() if k not in known or known[k].default != _fixed(v)}}


def _fixed(value: Any) -> Any:
    """Pairs are lists in YAML and tuples in the layers' defaults."""
    return tuple(value) if isinstance(value, list) else value


def _agreed(layers: list[Entry]) -> dict[str, dict[str, Any]]:
    """Fields that all entries of a kind give the same value, where there is more than one."""
    found: dict[str, list[dict[str, Any]]] = {}

    def note(kind: str, fields: dict[str, Any]) -> Entry:
        found.setdefault(kind, []).append(fields)
        return {kind: fields}

    _each(layers, note)
    agreed = {}
    for kind, entries in found.items():
        if len(entries) > 1 and kind in layer_kinds():
            same = {
                name: value
                for name, value in entries[0].items()
                if name not in (*NESTED, "id") and all(other.get(name, _NO) == value for other in entries)
            }
            if same:
                agreed[kind] = same
    return agreed


_NO = object()


def _rest(kind: str, fields: dict[str, Any], shared: dict[str, Any]) -> Entry:
    rest = {name: value for name, value in fields.items() if name not in shared}
    if "branches" in rest:
        rest["branches"] = [branch[0] if len(branch) == 1 else branch for branch in rest["branches"]]
    return {kind: rest} if rest else kind
