"""Blocks: lists of lines that are all exactly as wide as the block, so that a frame fits its terminal."""

import unicodedata
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.text import Text

from archsearch.ui import theme

Block = list[Text]

_LEVELS = "▁▂▃▄▅▆▇█"


def clean(message: str) -> str:
    """One line of printable text: control characters of a message must not drive the terminal."""
    if message.isprintable():
        return message
    return "".join(
        " " if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") else char for char in message
    )


def fit(line: Text, width: int, align: str = "left") -> Text:
    """A copy of `line` in exactly `width` cells, cut with an ellipsis or padded."""
    fitted = line.copy()
    fitted.no_wrap = True
    fitted.truncate(max(0, width), overflow="ellipsis")
    space = max(0, width - fitted.cell_len)
    if align == "right":
        fitted.pad_left(space)
    else:
        fitted.pad_right(space)
    return fitted


def spread(left: Text, right: Text, width: int) -> Text:
    """`left` and `right` at the two ends of a line; the left one gives way."""
    room = max(0, width - right.cell_len - (1 if right.cell_len else 0))
    return Text.assemble(fit(left, room), " " * (width - room - right.cell_len), right)


def joined(entries: Iterable[Text], width: int, gap: str = "  ") -> Text:
    """As many of the entries as fit, in order."""
    line = Text(no_wrap=True)
    for entry in entries:
        needed = entry.cell_len + (cell_len(gap) if line else 0)
        if line.cell_len + needed > width:
            break
        line.append(gap if line else "")
        line.append_text(entry)
    return line


def panel(
    lines: Sequence[Text],
    width: int,
    height: int,
    title: Text,
    note: Text | None = None,
    foot: Text | None = None,
) -> Block:
    """`lines` in a border of exactly `width` by `height`; `note` sits top right, `foot` at the bottom."""
    inner = width - 4
    edge = theme.QUIET
    body = [fit(line, inner) for line in lines[: height - 2]]
    body += [Text(" " * inner)] * (height - 2 - len(body))
    rows = [Text.assemble(("│ ", edge), line, (" │", edge)) for line in body]
    return [_rule("╭", "╮", title, note, width), *rows, _rule("╰", "╯", foot, None, width)]


def beside(left: Block, right: Block) -> Block:
    """Two blocks of equal height side by side."""
    return [Text.assemble(one, other) for one, other in zip(left, right, strict=True)]


def bar(share: float, width: int, colour: str) -> Text:
    """A progress bar with a resolution of half a cell."""
    halves = round(max(0.0, min(1.0, share)) * width * 2)
    full, half = divmod(halves, 2)
    return Text.assemble(
        ("━" * full + "╸" * half, colour), ("─" * (width - full - half), theme.QUIET), no_wrap=True
    )


def shares_bar(shares: Sequence[tuple[float, str]], width: int) -> Text:
    """Shares as coloured stretches of `width` whole cells, given as (share, colour), by largest remainder."""
    total = sum(share for share, _ in shares)
    if total <= 0:
        return Text("·" * width, theme.QUIET)
    exact = [share / total * width for share, _ in shares]
    cells = [int(amount) for amount in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: cells[index] - exact[index])
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    # Seven eighths would merge into one block with the row above.
    return Text.assemble(*(("▆" * cells[i], colour) for i, (_, colour) in enumerate(shares)), no_wrap=True)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values' course in at most `width` block characters, from 0 to their highest."""
    if not values:
        return ""
    columns = min(width, len(values))
    picked = [values[(index + 1) * len(values) // columns - 1] for index in range(columns)]
    top = max(picked)
    if top <= 0:
        return _LEVELS[0] * columns
    return "".join(_LEVELS[min(7, max(0, int(entry / top * 7.999)))] for entry in picked)


def _rule(start: str, end: str, left: Text | None, right: Text | None, width: int) -> Text:
    edge = theme.QUIET
    room = width - 2
    head = Text.assemble(("─ ", edge), left, (" ", edge)) if left else Text("─", edge)
    tail = Text.assemble((" ", edge), right, (" ─", edge)) if right else Text("─", edge)
    if head.cell_len + tail.cell_len > room:
        tail = Text("─", edge)
        head.truncate(max(1, room - 1), overflow="ellipsis")
    gap = "─" * (room - head.cell_len - tail.cell_len)
    return Text.assemble((start, edge), head, (gap, edge), tail, (end, edge))
