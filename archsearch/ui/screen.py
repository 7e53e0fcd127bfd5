"""A terminal's alternate screen, of which only the lines that changed are worked out."""

from rich.console import Console
from rich.text import Text

from archsearch.ui.blocks import Block


class Screen:
    """Draws frames as wide and high as the terminal, from `open` to `close`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: list[tuple[Text, str]] = []

    def open(self) -> None:
        """Leave what the terminal shows for an empty screen without a cursor."""
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def draw(self, lines: Block, whole: bool) -> None:
        """Show these lines. whole: write those too that should be there already, whatever stands there."""
        written = []
        drawn = []
        for row, line in enumerate(lines):
            before = self._lines[row] if row < len(self._lines) else None
            same = before is not None and _same(before[0], line)
            now = before if before is not None and same else (line, self._codes(line))
            drawn.append(now)
            if whole or not same:
                written.append(f"\x1b[{row + 1};1H{now[1]}")
        self._lines = drawn
        if self._console.is_terminal and written:
            self._console.file.write("".join(written))
            self._console.file.flush()

    def close(self) -> None:
        """Show again what was there before, and the cursor."""
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def _codes(self, line: Text) -> str:
        """The line with the terminal's codes for its colours."""
        with self._console.capture() as capture:
            self._console.print(line, end="", soft_wrap=True)
        return capture.get()


def _same(one: Text, other: Text) -> bool:
    return one.plain == other.plain and one.spans == other.spans and one.style == other.style
