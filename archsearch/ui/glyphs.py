"""A layout as coloured characters: one a layer, parallel branches between bars, nothing hidden silently.

    MA-MA-MA-      a stack, in order
    (MA-)×3        the same where there is little room
    (M│A)ˣ         parallel branches and how they are merged; they nest
    a              attention with a window

When even the shortest form is too wide, the rest is counted: `MA-…+6`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from archsearch.ui import theme
from archsearch.ui.blocks import clean

Run = tuple[str, str]
"""Characters and their style."""

_BRACKET = "bold"
_FOLD = theme.QUIET
_LONGEST_PERIOD = 32


@dataclass(frozen=True)
class Unit:
    """A drawn piece of a layout that is never broken, and the number of layers it stands for."""

    runs: tuple[Run, ...]
    layers: int

    @property
    def width(self) -> int:
        """Terminal cells."""
        return sum(cell_len(characters) for characters, _ in self.runs)


def layout_text(layout: Sequence[dict[str, Any]], width: int | None = None) -> Text:
    """The layout drawn in at most `width` cells: in full, else with periods folded, else cut and counted."""
    units = _units(layout, fold=False)
    if width is not None and _width(units) > width:
        units = _units(layout, fold=True)
        if _width(units) > width:
            whole = _cut(units, width)
            pieces = _cut(_pieces(_units(layout, fold=False)), width)
            units = min(whole, pieces, key=lambda drawn: drawn[-1].layers)
    return Text.assemble(*(run for unit in units for run in unit.runs), no_wrap=True)


def layer_glyph(layer: dict[str, Any]) -> str:
    """The layer's character: its glyph, small where attention has a window."""
    glyph = clean(str(layer.get("glyph") or layer.get("kind") or "?"))[:1] or "?"
    if not layer.get("window"):
        return glyph
    return glyph.lower() if glyph.lower() != glyph else "w"


def legend(layouts: Sequence[Sequence[dict[str, Any]]]) -> list[Text]:
    """What the glyphs and merge marks of these layouts stand for, most frequent kinds first."""
    merges = Counter(merge for layout in layouts for merge in _merges(layout))
    entries = [
        Text.assemble((glyph, f"bold {colour}"), (f" {name}", theme.QUIET))
        for glyph, name, colour in kinds(layouts)
    ]
    entries += [
        Text.assemble(
            ("(│)", _BRACKET), (f"{merge_mark(merge)} {clean(merge).replace('_', ' ')}", theme.QUIET)
        )
        for merge, _ in merges.most_common()
    ]
    return entries


def kinds(layouts: Sequence[Sequence[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """(glyph, name, colour) of every kind of layer in these layouts, most frequent first."""
    found: Counter[tuple[str, str, str]] = Counter()
    for layout in layouts:
        for layer in theme.leaves(layout):
            kind, windowed = str(layer.get("kind", "?")), bool(layer.get("window"))
            name = clean(f"windowed {kind}" if windowed else kind)
            found[layer_glyph(layer), name, theme.layer_colour(str(layer.get("family")), kind, windowed)] += 1
    return [key for key, _ in found.most_common()]


def merge_mark(merge: str) -> str:
    """The superscript that stands for a merge."""
    return theme.MERGES.get(merge, "°")


def _merges(layout: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for item in layout:
        if theme.is_parallel(item):
            found.append(str(item.get("merge", "?")))
            for branch in item.get("branches", ()):
                found += _merges(branch)
    return found


def _units(layout: Sequence[dict[str, Any]], fold: bool) -> list[Unit]:
    units = [_parallel(item, fold) if theme.is_parallel(item) else _layer(item) for item in layout]
    return _fold(units) if fold else units


def _layer(layer: dict[str, Any]) -> Unit:
    colour = theme.layer_colour(str(layer.get("family")), str(layer.get("kind")), bool(layer.get("window")))
    return Unit(((layer_glyph(layer), f"bold {colour}"),), 1)


def _parallel(item: dict[str, Any], fold: bool) -> Unit:
    runs: list[Run] = []
    layers = 0
    for index, branch in enumerate(item.get("branches", ())):
        runs.append(("│" if index else "(", _BRACKET))
        for unit in _units(branch, fold):
            runs += unit.runs
            layers += unit.layers
    runs += [(")", _BRACKET), (merge_mark(str(item.get("merge", "?"))), _FOLD)]
    return Unit(tuple(runs), layers)


def _width(units: Sequence[Unit]) -> int:
    return sum(unit.width for unit in units)


def _fold(units: list[Unit]) -> list[Unit]:
    """The narrowest way to write `units` with repeated stretches as (stretch)×count, by dynamic programming.

    `best[i]` is the narrowest form of `units[i:]`, found from the end.
    """
    best: list[tuple[int, list[Unit]]] = [(0, [])]
    for start in range(len(units) - 1, -1, -1):
        rest_width, rest = best[-1]
        choice = (units[start].width + rest_width, [units[start], *rest])
        for period in range(1, min(_LONGEST_PERIOD, (len(units) - start) // 2) + 1):
            stretch = units[start : start + period]
            repeats = 1
            while units[start + repeats * period : start + (repeats + 1) * period] == stretch:
                repeats += 1
            for times in range(2, repeats + 1):
                folded = _repeated(stretch, times)
                rest_width, rest = best[len(units) - start - times * period]
                if folded.width + rest_width < choice[0]:
                    choice = (folded.width + rest_width, [folded, *rest])
        best.append(choice)
    return best[-1][1]


def _repeated(stretch: list[Unit], times: int) -> Unit:
    runs = [run for unit in stretch for run in unit.runs]
    if len(stretch) > 1:
        runs = [("(", _FOLD), *runs, (")", _FOLD)]
    return Unit((*runs, (f"×{times}", _FOLD)), times * sum(unit.layers for unit in stretch))


def _pieces(units: list[Unit]) -> list[Unit]:
    """Unfolded units broken into single characters, so that even a wide parallel can be cut."""
    brackets = {"(", "│", ")", merge_mark(""), *theme.MERGES.values()}
    return [Unit((run,), 0 if run[0] in brackets else 1) for unit in units for run in unit.runs]


def _cut(units: list[Unit], width: int) -> list[Unit]:
    """As many whole units as fit, and the number of layers left out."""
    kept = list(units)
    left = 0
    while kept:
        left += kept.pop().layers
        note = Unit(((f"…+{left}", _FOLD),), left)
        if _width(kept) + note.width <= width:
            return [*kept, note]
    return [Unit((("…"[:width], _FOLD),), left)]
