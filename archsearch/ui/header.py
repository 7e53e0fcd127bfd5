"""The dashboard's head: what runs, how far it is, and how good it has become."""

from rich.text import Text

from archsearch.study import Study
from archsearch.ui import theme
from archsearch.ui.blocks import Block, clean, joined, sparkline, spread
from archsearch.ui.memory import once_an_event
from archsearch.ui.units import arrow, count, duration, value

_STATUS = {
    "running": ("●", theme.GOOD),
    "finished": ("✓", theme.GOOD),
    "interrupted": ("‖", theme.GOLD),
    "waiting": ("○", theme.QUIET),
}
_STATE_COLOURS = {
    "complete": theme.GOOD,
    "running": theme.ACCENT,
    "paused": theme.QUIET,
    "stopped": theme.QUIET,
    "failed": theme.BAD,
    "infeasible": theme.QUIET,
    "duplicate": theme.GOLD,
}


def header(study: Study, width: int) -> Block:
    """Three lines of `width` cells: name and clock, progress, best values."""
    return [_title(study, width), _progress(study, width), _scores(study, width)]


def _title(study: Study, width: int) -> Text:
    head = study.header
    mark, colour = _STATUS[study.status]
    clock = [Text.assemble((f"{mark} {study.status}", f"bold {colour}"))]
    clock.append(Text.assemble(("elapsed ", theme.QUIET), (duration(study.elapsed), "bold")))
    eta = study.eta
    if study.status == "running":
        clock.append(
            Text.assemble(("ETA ", theme.QUIET), (duration(eta) if eta is not None else "–", "bold"))
        )
    right = joined(clock, width, "   ")
    left = Text.assemble((" archsearch ", f"bold #ffffff on {theme.ACCENT}"), " ", (clean(head.name), "bold"))
    facts = []
    if head.sampler:
        facts.append(head.sampler)
    if head.seed is not None:
        facts.append(f"seed {head.seed}")
    facts.append(f"{head.concurrency} at a time")
    facts += [f"{count(amount)} {name} a trial" for name, amount in head.budget.items() if _is_amount(amount)]
    room = width - left.cell_len - right.cell_len - 6
    told = joined([Text(clean(fact), theme.QUIET) for fact in facts], max(0, room), " · ")
    if told:
        left = Text.assemble(left, "   ", told)
    return spread(left, right, width)


def _progress(study: Study, width: int) -> Text:
    counts = study.counts()
    total = max(1, study.total)
    ended = len(study.ended)
    parts = [Text.assemble((f"{ended}", "bold"), (f"/{study.total} trials", theme.QUIET))]
    for state, colour in _STATE_COLOURS.items():
        if state != "complete" and counts.get(state):
            word = "unfinished" if state == "running" and not study.live else state
            plural = "s" if state == "duplicate" and counts[state] > 1 else ""
            parts.append(
                Text.assemble((f"{counts[state]}", f"bold {colour}"), (f" {word}{plural}", theme.QUIET))
            )
    told = joined(parts, width - 12)
    space = max(1, width - told.cell_len - 2)
    return Text.assemble(_bar(study, counts, total, space), "  ", told)


def _bar(study: Study, counts: dict[str, int], total: int, width: int) -> Text:
    """How the trials ended, in stretches; each running trial adds what it has done."""
    done = sum(trial.progress for trial in study.trials.values() if trial.state == "running")
    amounts = [
        (counts.get("complete", 0) + counts.get("duplicate", 0), theme.GOOD),
        (counts.get("failed", 0), theme.BAD),
        (counts.get("infeasible", 0) + counts.get("stopped", 0), theme.QUIET),
        (done, theme.ACCENT),
    ]
    line = Text(no_wrap=True)
    reached = 0.0
    for amount, colour in amounts:
        reached += amount
        upto = round(min(1.0, reached / total) * width)
        # A state that occurs is seen, however wide the study.
        if amount and upto <= line.cell_len < width:
            upto = line.cell_len + 1
        line.append("━" * max(0, upto - line.cell_len), colour)
    return line.append("─" * (width - line.cell_len), theme.QUIET)


@once_an_event
def _scores(study: Study, width: int) -> Text:
    parts = []
    for name, direction in study.header.objectives.items():
        best = study.best(name)
        found = value(best.values[name]) if best else "–"
        whose = f" {clean(best.id)}" if best and width >= 100 else ""
        parts.append(
            Text.assemble(
                (f"best {clean(name)} {arrow(direction)} ", theme.QUIET),
                (found, f"bold {theme.GOLD}"),
                (whose, theme.QUIET),
            )
        )
    history = study.hypervolume_history()
    assumed = ""
    if history and study.assumed_reference:
        assumed = " against worst seen" if width >= 120 else "*"
    volume = Text.assemble(
        (f"hypervolume{assumed} ", theme.QUIET),
        (value(history[-1]) if history else "–", f"bold {theme.GOLD}"),
    )
    parts.append(volume)
    parts.append(Text.assemble(("front ", theme.QUIET), (f"{len(study.front())}", f"bold {theme.GOLD}")))
    line = joined(parts, width, "   ")
    room = min(40, width - line.cell_len - 3)
    if room >= 6 and history:
        at = line.plain.find("front ")
        drawn = Text(sparkline(history, room), theme.GOLD)
        cut = at - 3 if at > 3 else line.cell_len
        line = Text.assemble(line[:cut], " ", drawn, line[cut:])
    return spread(line, Text(), width)


def _is_amount(amount: object) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool)
