"""The two plots of the dashboard: the front, and the training curves of what is running."""

import itertools
import math
from collections.abc import Sequence

from rich.text import Text

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.blocks import Block, clean, fit, joined
from archsearch.ui.canvas import Canvas
from archsearch.ui.units import arrow, value

_SMALLEST = (16, 4)
_CURVES = (theme.ACCENT, "#e8590c", "#2f9e44", "#d6336c", "#0891b2", "#a97900")


def span(values: Sequence[float], keep: Sequence[float]) -> tuple[float, float]:
    """An axis that shows all of `keep` and nine tenths of `values`, with a little room at both ends.

    One candidate that barely learned must not squeeze the front into a corner.
    """
    ranked = sorted(values)
    low, high = ranked[len(ranked) // 10], ranked[-1 - len(ranked) // 10]
    reach = max(high, *keep) - min(low, *keep)
    low, high = min(low, *keep), max(high, *keep)
    # An end just outside costs little room and is worth showing.
    low = ranked[0] if ranked[0] > low - 0.35 * reach else low
    high = ranked[-1] if ranked[-1] < high + 0.35 * reach else high
    pad = 0.06 * (high - low) or max(abs(high) * 0.05, 0.05)
    return low - pad, high + pad


def staircase(
    points: Sequence[tuple[float, float]], directions: tuple[str, str], corner: tuple[float, float]
) -> list[tuple[float, float]]:
    """Corners of the attained front through (x, y) `points`, for x's and y's directions.

    Between two neighbours the curve keeps the worse of both values, what is sure to be reachable; beyond its
    ends it runs on to the worst `corner`.
    """
    ordered = sorted(points)
    corners: list[tuple[float, float]] = []
    for point in ordered:
        if corners:
            left = corners[-1]
            low_x = directions[0] == "minimize"
            corners.append((point[0], left[1]) if low_x else (left[0], point[1]))
        corners.append(point)
    if not corners:
        return []
    if directions[0] == "minimize":
        return [(corners[0][0], corner[1]), *corners, (corner[0], corners[-1][1])]
    return [(corner[0], corners[0][1]), *corners, (corners[-1][0], corner[1])]


def scatter(study: Study, width: int, height: int) -> Block:
    """Every complete trial by its first two objectives (y, x), the front joined by its staircase."""
    complete = study.complete
    if width < _SMALLEST[0] or height < _SMALLEST[1] + 2 or not complete:
        words = "no complete trial yet" if not complete else "too little room for the plot"
        return [Text(words, theme.QUIET)]
    y_name, x_name = _axes(study)
    front = study.front()
    points = {trial.id: _point(trial, x_name, y_name) for trial in complete}
    canvas = _canvas(points, front, width, height)
    if len(study.objectives) == 2:
        directions = _directions(study, x_name, y_name)
        corner = worst(canvas.x, directions[0]), worst(canvas.y, directions[1])
        canvas.line(staircase([points[trial.id] for trial in front], directions, corner), theme.GOLD)
    outside = 0
    members = {trial.id for trial in front}
    for trial in complete:
        x, y = points[trial.id]
        outside += not (canvas.x[0] <= x <= canvas.x[1] and canvas.y[0] <= y <= canvas.y[1])
        if trial.id not in members:
            canvas.mark(x, y, "●", theme.COMPOSITIONS[theme.composition(trial.layout)])
    spots = [(canvas.mark(*points[trial.id], "★", f"bold {theme.GOLD}"), trial) for trial in front]
    if width >= 30:
        for (column, row), trial in spots:
            canvas.label(column, row, clean(trial.id).lstrip("0") or "0", f"bold {theme.GOLD}")
    lines = canvas.framed(_axis_name(study, x_name), _axis_name(study, y_name))
    if outside:
        lines[1] = _right(lines[1], f"{outside} beyond the edge", width)
    return lines


def scatter_legend(study: Study, width: int) -> Text:
    """What the colours of the points stand for, those that occur."""
    seen = {theme.composition(trial.layout) for trial in study.complete}
    entries = [Text.assemble(("★", theme.GOLD), (" front", theme.QUIET))]
    drawn = [name for name in theme.COMPOSITIONS if name in seen]
    full = sum(len(name) + 4 for name in drawn) + entries[0].cell_len
    for name in drawn:
        told = name if full <= width else theme.SHORT_COMPOSITIONS[name]
        entries.append(Text.assemble(("●", theme.COMPOSITIONS[name]), (f" {told}", theme.QUIET)))
    return joined(entries, width)


def curves(study: Study, width: int, height: int) -> Block:
    """Training loss against steps of the running trials, beside the last ended ones that were followed."""
    followed = [trial for trial in study.trials.values() if len(losses(trial)) > 1]
    shown = [trial for trial in followed if trial.state == "running"]
    shown += [trial for trial in reversed(study.ended) if trial in followed][: max(0, 4 - len(shown))]
    if not shown or width < _SMALLEST[0] or height < _SMALLEST[1] + 2:
        return [Text("no training curve yet", theme.QUIET)]
    seen = [loss for trial in shown for _, loss in losses(trial)]
    last = max(point.get("steps") or point["step"] for trial in shown for point in trial.curve[-1:])
    canvas = Canvas(width, height - 3, (0.0, float(last)), span(seen, [min(seen)]))
    canvas.width -= canvas.margin()
    legend = []
    for index, trial in reversed(list(enumerate(shown))):
        colour = _CURVES[index % len(_CURVES)] if trial.state == "running" else theme.QUIET
        canvas.line(below(losses(trial), canvas.y[1]), colour)
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


def _axes(study: Study) -> tuple[str, str]:
    """Names on y and x: the first two objectives; a single one is drawn against itself."""
    names = study.objectives
    return names[0], names[1] if len(names) > 1 else names[0]


def _directions(study: Study, x_name: str, y_name: str) -> tuple[str, str]:
    return study.header.objectives[x_name], study.header.objectives[y_name]


def worst(reach: tuple[float, float], direction: str) -> float:
    """The worse end of an axis."""
    return reach[0] if direction == "maximize" else reach[1]


def _axis_name(study: Study, name: str) -> str:
    return f"{clean(name)} {arrow(study.header.objectives[name])}"


def _point(trial: Trial, x_name: str, y_name: str) -> tuple[float, float]:
    return float(trial.values[x_name] or 0.0), float(trial.values[y_name] or 0.0)


def _canvas(
    points: dict[str, tuple[float, float]], front: Sequence[Trial], width: int, height: int
) -> Canvas:
    kept = [points[trial.id] for trial in front]
    x = span([x for x, _ in points.values()], [x for x, _ in kept])
    y = span([y for _, y in points.values()], [y for _, y in kept])
    canvas = Canvas(width, height - 2, x, y)
    canvas.width -= canvas.margin()
    return canvas


def below(points: Sequence[tuple[float, float]], top: float) -> list[tuple[float, float]]:
    """The points under `top`, for a curve whose steep start would flatten the rest; the last one stays."""
    return [point for point in points if point[1] <= top] or list(points[-1:])


def losses(trial: Trial) -> list[tuple[float, float]]:
    """The (step, loss) points of a trial's curve, finite ones only."""
    return [
        (float(point["step"]), float(point["loss"]))
        for point in trial.curve
        if isinstance(point.get("loss"), int | float) and math.isfinite(point["loss"])
    ]


def _right(line: Text, words: str, width: int) -> Text:
    start = width - len(words)
    if line.plain[start:].strip():
        return line
    return Text.assemble(fit(line, start), (words, f"italic {theme.QUIET}"))
