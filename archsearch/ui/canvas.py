"""A plot in the terminal: lines in braille dots, points as characters, axes with round ticks."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.text import Text

from archsearch.ui import theme, units

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not high > low or wanted < 1:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick with the decimals that its step needs, and no more."""
    if abs(value) >= 1e4:
        return units.count(value)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    return f"{value:.{min(decimals, 6)}f}"


@dataclass
class Canvas:
    """A grid of `width` by `height` cells over the ranges `x` and `y`; what lies outside is clipped."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    _dots: dict[tuple[int, int], int] = field(default_factory=dict)
    _inks: dict[tuple[int, int], str] = field(default_factory=dict)
    _marks: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """Straight stretches between the points, two by four dots a cell."""
        spots = [self._dot(*point) for point in points]
        for (x0, y0), (x1, y1) in itertools.pairwise(spots):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for index in range(steps + 1):
                share = index / steps
                self._ink(round(x0 + (x1 - x0) * share), round(y0 + (y1 - y0) * share), colour)

    def mark(self, x: float, y: float, character: str, style: str) -> tuple[int, int]:
        """A character at a point; later marks cover earlier ones. Returns its column and row."""
        column, row = self.cell(x, y)
        self._marks[column, row] = (character, style)
        return column, row

    def label(self, column: int, row: int, words: str, style: str) -> bool:
        """Words beside the mark at (column, row) where they hide no mark; whether there was such a place."""
        length = len(words)
        spots = [
            (column + 1, row),
            (column - length, row),
            (column - length // 2, row - 1),
            (column - length // 2, row + 1),
        ]
        for start, line in spots:
            cells = [(start + offset, line) for offset in range(length)]
            inside = 0 <= line < self.height and start >= 0 and start + length <= self.width
            if inside and not any(cell in self._marks for cell in cells):
                for cell, character in zip(cells, words, strict=True):
                    self._marks[cell] = (character, style)
                return True
        return False

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Column and row of a point."""
        column, row = self._dot(x, y)
        return column // 2, row // 4

    def rows(self) -> list[Text]:
        """The grid's lines, each `width` cells."""
        return [self._row(row) for row in range(self.height)]

    def framed(self, x_name: str, y_name: str) -> list[Text]:
        """The grid with its axes: `height` + 2 lines, ticks in the margin, names inside."""
        y_ticks = self._y_ticks()
        y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else abs(self.y[1] - self.y[0])
        labels = {self.cell(self.x[0], tick)[1]: tick_label(tick, y_step) for tick in y_ticks}
        margin = max((len(label) for label in labels.values()), default=0)
        quiet = theme.QUIET
        lines = []
        for row, line in enumerate(self.rows()):
            edge = "┤" if row in labels else "│"
            lines.append(Text.assemble((f"{labels.get(row, ''):>{margin}}", quiet), (edge, quiet), line))
        end = margin + 1 + self.width - len(x_name)
        titled = _overlay(lines[-1], end, x_name, f"italic {quiet}")
        lines[-1] = titled or lines[-1]
        lines.append(self._x_axis(margin))
        lines.append(self._x_labels(margin, "" if titled else x_name))
        end = margin + 1 + self.width - len(y_name)
        for start in (margin + 2, end, (margin + end) // 2):
            titled = _overlay(lines[0], start, y_name, f"italic {quiet}")
            if titled is not None:
                lines[0] = titled
                break
        return lines

    def margin(self) -> int:
        """Cells that `framed` needs left of the grid."""
        y_ticks = self._y_ticks()
        y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else abs(self.y[1] - self.y[0])
        return max(len(tick_label(tick, y_step)) for tick in y_ticks) + 1

    def _y_ticks(self) -> list[float]:
        return ticks(*self.y, max(3, self.height // 4))

    def _x_ticks(self) -> dict[int, str]:
        found = ticks(*self.x, max(3, self.width // 12))
        step = found[1] - found[0] if len(found) > 1 else abs(self.x[1] - self.x[0])
        return {self.cell(tick, self.y[0])[0]: tick_label(tick, step) for tick in found}

    def _row(self, row: int) -> Text:
        cells = [self._cell(column, row) for column in range(self.width)]
        stretches = itertools.groupby(cells, key=lambda cell: cell[1])
        return Text.assemble(
            *(("".join(character for character, _ in run), style) for style, run in stretches), no_wrap=True
        )

    def _cell(self, column: int, row: int) -> tuple[str, str]:
        cell = (column, row)
        if cell in self._marks:
            return self._marks[cell]
        dots = self._dots.get(cell)
        return (chr(_BRAILLE + dots), self._inks[cell]) if dots else (" ", "")

    def _x_axis(self, margin: int) -> Text:
        marked = self._x_ticks()
        rule = "".join("┬" if column in marked else "─" for column in range(self.width))
        return Text(" " * margin + "└" + rule, theme.QUIET)

    def _x_labels(self, margin: int, name: str) -> Text:
        cells = [" "] * (margin + 1 + self.width)
        limit = len(cells) - len(name) - 1
        for column, label in self._x_ticks().items():
            start = max(0, margin + 1 + column - len(label) // 2)
            free = all(cell == " " for cell in cells[max(0, start - 1) : start + len(label)])
            if start + len(label) <= limit and free:
                cells[start : start + len(label)] = label
        line = Text("".join(cells)[:limit].ljust(limit) + " ", theme.QUIET)
        return Text.assemble(line, (name, f"italic {theme.QUIET}"))

    def _dot(self, x: float, y: float) -> tuple[int, int]:
        across = _share(x, self.x) * (self.width * 2 - 1)
        down = (1.0 - _share(y, self.y)) * (self.height * 4 - 1)
        return round(across), round(down)

    def _ink(self, column: int, row: int, colour: str) -> None:
        cell = (column // 2, row // 4)
        self._dots[cell] = self._dots.get(cell, 0) | _DOTS[row % 4][column % 2]
        self._inks[cell] = colour


def _share(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def _overlay(line: Text, start: int, words: str, style: str) -> Text | None:
    """Words over a line's blank stretch; None where something is drawn there."""
    stretch = line.plain[start : start + len(words) + 1]
    if stretch.strip() or len(stretch) < len(words):
        return None
    return Text.assemble(line[:start], (words, style), line[start + len(words) :])
