"""The table of trials: running ones first, then the front, then the most recent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.blocks import Block, bar, clean, fit, shares_bar
from archsearch.ui.glyphs import layout_text
from archsearch.ui.memory import once_a_layout, once_an_event
from archsearch.ui.units import arrow, count, duration, setting, share, size, value

_GAP = 2
_LAYOUT_LEAST = 14
_WORDS_LEAST = 18
_SAMPLE = 60


@dataclass(frozen=True)
class Column:
    """A column: its title, its width in cells, and what it shows of a trial."""

    title: str
    width: int
    cell: Callable[[Trial], Text]
    align: str = "right"


def trial_table(study: Study, width: int, height: int) -> Block:
    """At most `height` lines of `width` cells: titles, trials, and how many more there are."""
    if not study.trials:
        words = "the first candidate is on its way" if study.live else "this study has no trials"
        return [Text(words, theme.QUIET)]
    columns, tail = _columns(study, width)
    running = [
        _row(study, trial, columns, tail) for trial in _shown(study, height) if trial.state == "running"
    ]
    return [_titles(columns, tail), *running, *_at_rest(study, width, height)][:height]


@once_an_event
def _at_rest(study: Study, width: int, height: int) -> Block:
    """The rows of what does not run, and how many trials are not shown."""
    trials, shown = ordered(study), _shown(study, height)
    columns, tail = _columns(study, width)
    lines = [_row(study, trial, columns, tail) for trial in shown if trial.state != "running"]
    if len(shown) < len(trials):
        lines.append(_remainder(trials[len(shown) :], width))
    return lines


def _shown(study: Study, height: int) -> list[Trial]:
    """The trials for which the table has room."""
    trials, room = ordered(study), max(0, height - 1)
    return trials if len(trials) <= room else trials[: max(0, room - 1)]


@once_an_event
def ordered(study: Study) -> list[Trial]:
    """Running trials by age, the front in its order, then the others from the most recent."""
    running = [trial for trial in study.trials.values() if trial.state == "running"]
    front = study.front()
    first = {trial.id for trial in (*running, *front)}
    rest = [trial for trial in study.trials.values() if trial.id not in first]
    return [*running, *front, *sorted(rest, key=lambda trial: -(trial.ended or 0.0))]


def mark(study: Study, trial: Trial) -> tuple[str, str]:
    """A trial's state as a character and its colour."""
    if trial.state == "running":
        return theme.MARKS["running" if study.live else "paused"]
    if study.on_front(trial):
        return theme.MARKS["front"]
    return theme.MARKS.get(trial.state, ("?", theme.QUIET))


def outcome(trial: Trial, brief: bool = False) -> str:
    """Why a trial has no values, or whose it has; empty for the others. `brief` leaves the message out."""
    if trial.state == "failed":
        cause = trial.cause or {}
        step = f" at step {cause['step']}" if cause.get("step") is not None else ""
        message = f": {cause['message']}" if cause.get("message") and not brief else ""
        return clean(f"{cause.get('kind', 'failed')}{step}{message}")
    if trial.state == "infeasible":
        broken = [f"breaks {name} by {share(excess)}" for name, excess in trial.constraints.items()]
        return clean(", ".join(broken) or "breaks a constraint")
    if trial.state in ("paused", "stopped"):
        return f"{trial.state} at {trial.rungs[-1]['share']:.0%}" if trial.rungs else trial.state
    if trial.state == "duplicate":
        return clean(f"same as {trial.of or '?'}")
    return ""


def settings(trial: Trial) -> str:
    """The sampled values that neither the layout nor the mixture shows, by their last name."""
    shown = {
        path.rsplit(".", 1)[-1]: entry
        for path, entry in trial.params.items()
        if not path.startswith(("data.mixture", "mixture")) and isinstance(entry, int | float | str | bool)
    }
    return clean("  ".join(f"{name} {setting(entry)}" for name, entry in shown.items()))


@once_an_event
def _columns(study: Study, width: int) -> tuple[list[Column], list[Column]]:
    """Leading columns, and the trailing ones over which a trial without values writes words."""
    trials = ordered(study)
    roomy = width >= 96
    tail = [_objective(study, name, roomy) for name in study.objectives]
    tail.append(Column("time", 6 if roomy else 5, _time))
    digits = max(4, min(10, max(len(trial.id) for trial in trials)))
    name = Column("id", digits + 2, lambda trial: _named(study, trial), "left")
    while len(tail) > 2 and _total([name, *tail]) + 8 + _LAYOUT_LEAST + 2 * _GAP > width:
        tail.pop(-2)
    wish = max(map(_layout_width, trials[:_SAMPLE]), default=0)
    wish = max(_LAYOUT_LEAST, min(wish, max(24, width // 5)))
    middle: list[Column] = []
    for column, comfort in _optional(study, trials, roomy, wish):
        needed = _total([name, *middle, column, *tail]) + _LAYOUT_LEAST + comfort
        if column.width and needed <= width:
            middle.append(column)
    left = width - _total([name, *middle, *tail])
    drawn = max(6, min(left, wish))
    layout = Column("layout", drawn, lambda trial: layout_text(trial.layout, drawn), "left")
    spare = max(0, left - drawn)
    if middle and middle[0].title == "mixture":
        wide = middle[0].width + min(spare, 14)
        spare -= wide - middle[0].width
        middle[0] = _mixture(study, wide)
    tail = [replace(column, width=column.width + min(4, spare // len(tail))) for column in tail]
    return [name, layout, *middle], tail


@once_a_layout
def _layout_width(layout: list[dict[str, Any]]) -> int:
    """Cells that the layout takes in full."""
    return layout_text(layout).cell_len


def _optional(study: Study, trials: Sequence[Trial], roomy: bool, wish: int) -> list[tuple[Column, int]]:
    """Columns by importance, with the cells beyond the layout's least that must be left for it."""
    longest = max((len(settings(trial)) for trial in trials[:_SAMPLE]), default=0)
    extra = wish - _LAYOUT_LEAST
    return [
        (_mixture(study, 12 if roomy else 9), 0),
        (_number("params", "params", count, 6), 0),
        (
            Column("sampled", min(longest, 40), lambda trial: Text(settings(trial), theme.QUIET), "left"),
            extra,
        ),
        (_number("state", "state_bytes", size, 8), extra),
        (_number("FLOP/tok", "flops_per_token", count, 8), extra),
    ]


def _mixture(study: Study, width: int) -> Column:
    return Column("mixture", width, lambda trial: shares_bar(mixture_shares(study, trial), width), "left")


def _number(title: str, cost: str, show: Callable[[float], str], width: int) -> Column:
    def cell(trial: Trial) -> Text:
        amount = trial.cost.get(cost)
        return Text(show(amount)) if isinstance(amount, int | float) else Text("–", theme.QUIET)

    return Column(title, width, cell)


def _named(study: Study, trial: Trial) -> Text:
    return Text.assemble(mark(study, trial), " ", (clean(trial.id), "bold"))


def _objective(study: Study, name: str, roomy: bool) -> Column:
    towards = arrow(study.header.objectives[name])
    title = f"{clean(name)} {towards}" if roomy else f"{clean(name)[:7]}{towards}"
    best = study.best(name)

    def cell(trial: Trial) -> Text:
        leads = best is not None and trial.id == best.id
        colour = theme.QUIET if trial.state == "duplicate" else ""
        return Text(value(trial.values.get(name)), f"bold {theme.GOLD}" if leads else colour)

    return Column(title, max(6, min(14, len(title))), cell)


def _titles(columns: Sequence[Column], tail: Sequence[Column]) -> Text:
    titles = [f"  {columns[0].title}", *(column.title for column in (*columns[1:], *tail))]
    cells = [
        fit(Text(title, theme.QUIET), column.width, column.align)
        for title, column in zip(titles, (*columns, *tail), strict=True)
    ]
    return Text(" " * _GAP).join(cells)


def _row(study: Study, trial: Trial, columns: Sequence[Column], tail: Sequence[Column]) -> Text:
    gap = Text(" " * _GAP)
    head = [fit(column.cell(trial), column.width, column.align) for column in columns]
    if trial.state == "running":
        return gap.join([*head, _progress(study, trial, _total(tail) - _GAP)])
    words = outcome(trial)
    if words and trial.state != "duplicate":
        colour = theme.BAD if trial.state == "failed" else theme.QUIET
        space = _total(tail) - _GAP
        while space < _WORDS_LEAST and len(head) > 2:
            space += head.pop().cell_len + _GAP
        return gap.join([*head, fit(Text(words, colour), space)])
    return gap.join([*head, *(fit(column.cell(trial), column.width, column.align) for column in tail)])


def _progress(study: Study, trial: Trial, width: int) -> Text:
    share = f" {trial.progress:4.0%}"
    loss = f" {value(trial.loss)}" if trial.loss is not None else ""
    colour = theme.ACCENT if study.live else theme.QUIET
    if not study.live:
        share = f" stopped at{share}" if width >= 26 else share
    if len(loss) + len(share) + 8 > width:
        loss = ""
    line = bar(trial.progress, max(1, width - len(share) - len(loss)), colour)
    return fit(Text.assemble(line, (share, "bold"), (loss, theme.QUIET)), width)


def mixture_shares(study: Study, trial: Trial) -> list[tuple[float, str]]:
    """A trial's mixture as (share, colour), in the study's order of sources."""
    sources = study.header.sources or sorted(
        {name for other in study.trials.values() for name in other.mixture}
    )
    named = [*sources, *(name for name in trial.mixture if name not in sources)]
    return [
        (share, theme.source_colour(name, named))
        for name in named
        if isinstance(share := trial.mixture.get(name), int | float) and share > 0
    ]


def source_legend(study: Study) -> list[Text]:
    """The colour of each data source."""
    sources = study.header.sources or sorted(
        {name for trial in study.trials.values() for name in trial.mixture}
    )
    return [
        Text.assemble(("■", theme.source_colour(name, sources)), (f" {clean(name)}", theme.QUIET))
        for name in sources
    ]


def _time(trial: Trial) -> Text:
    return Text(duration(trial.seconds) if trial.seconds else "–", theme.QUIET)


def _remainder(trials: Sequence[Trial], width: int) -> Text:
    states: dict[str, int] = {}
    for trial in trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    return fit(Text(f"… {len(trials)} more: {told}", f"italic {theme.QUIET}"), width)


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width + _GAP for column in columns)
