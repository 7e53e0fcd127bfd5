"""One line a thing that happened: the dashboard's log, and all there is where the output is no terminal."""

import time
from typing import Any

from rich.text import Text

from archsearch.study import Study
from archsearch.ui import theme
from archsearch.ui.blocks import clean
from archsearch.ui.table import outcome
from archsearch.ui.units import arrow, count, duration, value

_LEVELS = {"info": theme.QUIET, "warning": theme.GOLD, "error": theme.BAD}


def event_line(study: Study, event: dict[str, Any], short: bool = False) -> Text | None:
    """What an event says, without its time; None for events that say nothing to a person.

    The short form gives values without their names, in the objectives' order.
    """
    kind = event.get("event")
    if kind == "note":
        return Text(clean(str(event.get("message", ""))), _LEVELS.get(str(event.get("level")), ""))
    if kind == "session":
        return _session_line(study, event)
    if kind == "trial":
        return _trial_line(study, event, short)
    return None


def stamped(moment: float, line: Text) -> Text:
    """`line` after the local time of day."""
    return Text.assemble((time.strftime("%H:%M:%S", time.localtime(moment)), theme.QUIET), "  ", line)


def _session_line(study: Study, event: dict[str, Any]) -> Text:
    state = event.get("state")
    if state == "started":
        # A session's events are read together, so whether it resumed is told by what stood before it.
        earlier = any(session.started < float(event.get("time", 0)) for session in study.sessions)
        return Text("resumed" if earlier else "started", f"bold {theme.ACCENT}")
    return Text(str(state), f"bold {theme.GOOD if state == 'finished' else theme.GOLD}")


def _trial_line(study: Study, event: dict[str, Any], short: bool) -> Text | None:
    trial = study.trials.get(str(event.get("trial")))
    if trial is None:
        return None
    state = str(event.get("state"))
    name = (clean(trial.id), "bold")
    if state == "running" and event.get("rung"):
        share = event["rung"]["share"]
        return Text.assemble(
            (theme.MARKS["running"][0], theme.ACCENT), " ", name, (f" passed {share:.0%}", theme.QUIET)
        )
    if state == "running":
        params = trial.cost.get("params")
        size = f", {count(params)} params" if isinstance(params, int | float) else ""
        mixture = ", ".join(f"{clean(source)} {share:.0%}" for source, share in trial.mixture.items())
        what = f" training{size}" + (f" on {mixture}" if mixture and not short else "")
        return Text.assemble((theme.MARKS["running"][0], theme.ACCENT), " ", name, (what, theme.QUIET))
    character, colour = theme.MARKS.get(state, ("?", theme.QUIET))
    if state == "complete":
        if study.on_front(trial):
            character, colour = theme.MARKS["front"]
        values = event.get("values") or trial.values
        told = "  ".join(
            ("" if short else f"{clean(objective)}{arrow(direction)} ") + value(values.get(objective))
            for objective, direction in study.header.objectives.items()
        )
        took = f"  in {duration(trial.seconds)}" if trial.seconds else ""
        return Text.assemble((character, colour), " ", name, f" {told}", (took, theme.QUIET))
    words = outcome(trial) if trial.state == state else state
    return Text.assemble((character, colour), " ", name, (f" {words}", colour))
