"""The two plots of the dashboard: the front, and the training curves of what is running."""

import itertools
import math

from rich.text import Text

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.blocks import Block, clean, joined
from archsearch.ui.canvas import Canvas
from archsearch.ui.plane import Plane, below, span
from archsearch.ui.units import arrow, value

_SMALLEST = (16, 4)
_CURVES = (theme.ACCENT, "#e8590c", "#2f9e44", "#d6336c", "#0891b2", "#a97900")


def scatter(study: Study, view: Plane | None, width: int, height: int) -> Block:
    """Every complete trial by its first two objectives (y, x), the front joined by its staircase."""
    if view is None or width < _SMALLEST[0] or height < _SMALLEST[1] + 2:
        return [Text("no complete trial yet" if view is None else "too little room", theme.QUIET)]
    canvas = Canvas(width, height - 2, view.x, view.y)
    canvas.width -= canvas.margin()
    canvas.line(view.steps, theme.GOLD)
    for trial in study.complete:
        if not study.on_front(trial):
            canvas.mark(*view.points[trial.id], "●", theme.COMPOSITIONS[view.compositions[trial.id]])
    spots = [
        (canvas.mark(*view.points[trial.id], "★", f"bold {theme.GOLD}"), trial) for trial in study.front()
    ]
    if width >= 30:
        for (column, row), trial in spots:
            canvas.label(column, row, clean(trial.id).lstrip("0") or "0", f"bold {theme.GOLD}")
    return canvas.framed(_axis_name(study, view.x_name), _axis_name(study, view.y_name))


def scatter_legend(view: Plane | None, width: int) -> Text:
    """What the colours of the points stand for, those that occur."""
    seen = set(view.compositions.values()) if view else set()
    entries = [Text.assemble(("★", theme.GOLD), (" front", theme.QUIET))]
    drawn = [name for name in theme.COMPOSITIONS if name in seen]
    full = sum(len(name) + 4 for name in drawn) + entries[0].cell_len
    for name in drawn:
        told = name if full <= width else theme.SHORT_COMPOSITIONS[name]
        entries.append(Text.assemble(("●", theme.COMPOSITIONS[name]), (f" {told}", theme.QUIET)))
    return joined(entries, width)


def curves(study: Study, width: int, height: int) -> Block:
    """Training loss against steps of the running trials, beside the last ended ones that were followed."""
    running = [trial for trial in study.trials.values() if trial.state == "running"]
    ended = [trial for trial in reversed(study.ended) if len(trial.curve) > 1]
    found = {trial.id: losses(trial) for trial in (*running, *ended[: max(0, 4 - len(running))])}
    drawn = {name: points for name, points in found.items() if len(points) > 1}
    if not drawn or width < _SMALLEST[0] or height < _SMALLEST[1] + 2:
        return [Text("no training curve yet", theme.QUIET)]
    seen = [loss for points in drawn.values() for _, loss in points]
    last = max(study.trials[name].curve[-1].get("steps") or points[-1][0] for name, points in drawn.items())
    canvas = Canvas(width, height - 3, (0.0, float(last)), span(seen, [min(seen)]))
    canvas.width -= canvas.margin()
    legend = []
    for index, (name, points) in reversed(list(enumerate(drawn.items()))):
        trial = study.trials[name]
        colour = _CURVES[index % len(_CURVES)] if trial.state == "running" else theme.QUIET
        canvas.line(below(points, canvas.y[1]), colour)
        if trial.state == "running":
            legend.append(Text.assemble(("━ ", colour), clean(trial.id), (f" {value(trial.loss)}", "bold")))
    lines = canvas.framed("step", "loss, nats a token")
    return [joined(reversed(legend), width), *lines]


def progress(study: Study, width: int, height: int) -> Block:
    """The hypervolume after each complete trial, a line that never falls."""
    history = study.hypervolume_history()
    if len(history) < 2 or width < _SMALLEST[0] or height < _SMALLEST[1] + 2:
        return [Text("no progress to draw yet", theme.QUIET)]
    canvas = Canvas(width, height - 2, (1.0, float(len(history))), (0.0, history[-1] * 1.05 or 1.0))
    canvas.width -= canvas.margin()
    steps = [(1.0, history[0])]
    for number, (before, after) in enumerate(itertools.pairwise(history), start=2):
        steps += [(float(number), before), (float(number), after)]
    canvas.line(steps, theme.GOLD)
    return canvas.framed("complete trials", "hypervolume")


def training(study: Study) -> bool:
    """Whether there is a curve worth drawing of a trial that runs."""
    return any(trial.state == "running" and len(losses(trial)) > 1 for trial in study.trials.values())


def _axis_name(study: Study, name: str) -> str:
    return f"{clean(name)} {arrow(study.header.objectives[name])}"


def losses(trial: Trial) -> list[tuple[float, float]]:
    """The (step, loss) points of a trial's curve, finite ones only."""
    return [
        (float(point["step"]), float(point["loss"]))
        for point in trial.curve
        if isinstance(point.get("loss"), int | float) and math.isfinite(point["loss"])
    ]
