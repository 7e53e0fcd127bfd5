import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from archsearch.study import Study
from archsearch.ui.dashboard import frame
from archsearch.ui.screen import Screen

ROW = re.compile(r"\x1b\[(\d+);1H((?:(?!\x1b\[\d+;1H).)*)", re.DOTALL)
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Terminal:
    """What a terminal would show: rows as they were last written, whole."""

    def __init__(self, width=80, height=24, **options):
        self.stream = io.StringIO()
        self.console = Console(file=self.stream, width=width, height=height, **options)
        self.screen = Screen(self.console)
        self.rows = {}

    def draw(self, lines, whole=False):
        """Draw; the rows that were written."""
        before = self.stream.tell()
        self.screen.draw(lines, whole)
        written = {int(row) - 1: codes for row, codes in ROW.findall(self.stream.getvalue()[before:])}
        self.rows |= written
        return sorted(written)

    def plain(self):
        return [COLOUR.sub("", self.rows[row]) for row in sorted(self.rows)]


@pytest.fixture
def terminal():
    return Terminal(force_terminal=True, color_system="truecolor")


def test_the_screen_shows_each_frame_however_little_was_written(terminal, live):
    study = Study.read(live.run_dir)
    numbers = iter(range(20, 24))
    for size in ((80, 24), (120, 40), (80, 24)):
        for _ in range(3):
            if number := next(numbers, None):
                live.begin(f"{number:04d}", live.candidate(number))
            study.refresh()
            lines = frame(study, *size)
            terminal.draw(lines, whole=terminal.console.size != size)
            terminal.console.size = size
            assert terminal.plain()[: size[1]] == [line.plain for line in lines]


def test_only_what_changed_is_written_unless_all_is_asked_for(terminal):
    lines = [Text("one"), Text("two", "bold"), Text.assemble(("three", "red"))]
    assert terminal.draw(lines) == [0, 1, 2]
    assert terminal.draw([line.copy() for line in lines]) == []
    assert terminal.draw([Text("one"), Text("two"), lines[2]]) == [1]
    assert terminal.draw([Text("one"), Text("two"), Text.assemble(("three", "blue"))]) == [2]
    assert terminal.draw([Text("One"), Text("two"), Text.assemble(("three", "blue"))]) == [0]
    assert terminal.draw([Text("One"), Text("two"), Text.assemble(("three", "blue"))], whole=True) == [
        0,
        1,
        2,
    ]
    assert terminal.plain() == ["One", "two", "three"]
    assert "\x1b[34mthree" in terminal.rows[2]


def test_colours_are_left_out_where_there_are_none():
    terminal = Terminal(force_terminal=True, color_system=None)
    terminal.draw([Text("plain", "red")])
    assert terminal.stream.getvalue() == "\x1b[1;1Hplain"
