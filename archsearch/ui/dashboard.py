"""The dashboard's frame: a pure function of the read model and the terminal's size."""

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from archsearch.study import Study
from archsearch.ui import theme
from archsearch.ui.blocks import Block, beside, fit, joined, panel
from archsearch.ui.charts import curves, progress, scatter, scatter_legend, training
from archsearch.ui.events import event_line, stamped
from archsearch.ui.glyphs import legend
from archsearch.ui.header import header
from archsearch.ui.memory import once_an_event
from archsearch.ui.plane import plane
from archsearch.ui.table import ordered, source_legend, trial_table

LEAST_WIDTH, LEAST_HEIGHT = 40, 10
_SIDE_BY_SIDE = 128

Said = tuple[float, str]
"""A moment, in seconds since the epoch, and a line said then."""


def render(study: Study, width: int, height: int, said: Sequence[Said] = ()) -> Group:
    """The study drawn in exactly `height` lines of `width` cells.

    `said` are lines that the record does not hold (stray output caught by the live dashboard); the log shows
    them among the record's events.
    """
    return Group(*frame(study, width, height, said))


def frame(study: Study, width: int, height: int, said: Sequence[Said] = ()) -> Block:
    """The lines of `render`."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        lines = [fit(line, width) for line in header(study, max(width, LEAST_WIDTH))]
        lines = (lines + [Text(" " * width)] * height)[:height]
        return lines
    head = header(study, width)
    rest = height - len(head)
    body = _wide(study, width, rest, said) if width >= _SIDE_BY_SIDE else _narrow(study, width, rest, said)
    return head + body


def _narrow(study: Study, width: int, height: int, said: Sequence[Said]) -> Block:
    """Trials above; the front and the log share the rows below."""
    below = max(5, min(height * 9 // 20, 26)) if height >= 14 else 0
    above = height - below
    block = _trials(study, width, above)
    if below:
        half = width // 2 + (4 if width < 100 else 0)
        block += beside(_front(study, half, below), _log(study, width - half, below, said))
    return block


def _wide(study: Study, width: int, height: int, said: Sequence[Said]) -> Block:
    """Trials and the log to the left, the front and the training curves to the right."""
    right = min(90, width * 34 // 100)
    left = width - right
    log_rows = max(5, height // 4)
    needed = len(study.trials) + 3
    table_rows = max(5, min(height - log_rows, needed))
    column = _trials(study, left, table_rows) + _log(study, left, height - table_rows, said)
    lower = height * 2 // 5 if height >= 30 else 0
    side = _front(study, right, height - lower)
    if lower:
        draw, name = (curves, "training") if training(study) else (progress, "progress")
        side = [*side, *panel(draw(study, right - 4, lower - 2), right, lower, _name(name))]
    return beside(column, side)


def _trials(study: Study, width: int, height: int) -> Block:
    table = trial_table(study, width - 4, height - 2)
    note, foot = _legends(study, width, height)
    return panel(table, width, height, _name("trials"), note, foot)


@once_an_event
def _legends(study: Study, width: int, height: int) -> tuple[Text, Text]:
    """What the table's mixtures and layouts are drawn with."""
    shown = ordered(study)[: max(1, height)]
    glyphs = legend([trial.layout for trial in shown])
    return joined(source_legend(study), width - 20), joined(glyphs, width - 8)


@once_an_event
def _front(study: Study, width: int, height: int) -> Block:
    view = plane(study)
    plot = scatter(study, view, width - 4, height - 2)
    outside = len(view.outside) if view else 0
    note = Text(f"{outside} beyond the edge", f"italic {theme.QUIET}") if outside else None
    return panel(plot, width, height, _name("front"), note, scatter_legend(view, width - 8))


def _log(study: Study, width: int, height: int, said: Sequence[Said]) -> Block:
    return _told(study, width, height, list(said[-height:]))


@once_an_event
def _told(study: Study, width: int, height: int, said: list[Said]) -> Block:
    rows = height - 2
    told = [
        (float(event.get("time", 0.0)), event_line(study, event, width < 60))
        for event in list(study.timeline)[-4 * rows :]
    ]
    lines = [(moment, line) for moment, line in told if line is not None]
    lines += [(moment, Text(words, theme.QUIET)) for moment, words in said]
    lines.sort(key=lambda pair: pair[0])
    shown = [stamped(moment, line) if width >= 50 else line for moment, line in lines[-rows:]]
    return panel(shown, width, height, _name("log"))


def _name(words: str) -> Text:
    return Text(words, "bold")
