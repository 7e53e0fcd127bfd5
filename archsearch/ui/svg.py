"""Charts of the report page as inline SVG, coloured by its style sheet so that they follow its mode."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.blocks import clean
from archsearch.ui.canvas import tick_label, ticks
from archsearch.ui.charts import losses
from archsearch.ui.plane import below, plane, span
from archsearch.ui.plots import axis_label
from archsearch.ui.units import value

_MOST_POINTS = 160


@dataclass(frozen=True)
class Frame:
    """A plotting area in user units, and the ranges it shows."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """User units of a point; one outside the ranges lands on the edge."""
        across = min(1.0, max(0.0, (x - self.x[0]) / (self.x[1] - self.x[0])))
        up = min(1.0, max(0.0, (y - self.y[0]) / (self.y[1] - self.y[0])))
        return self.left + across * self.width, self.top + (1.0 - up) * self.height

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """The `d` of a line through the points."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.place(*point) for point in points))


def front_chart(study: Study) -> str:
    """The front's scatter; points tell their trial and link to its row. Empty before a trial is complete."""
    view = plane(study)
    if view is None:
        return ""
    frame = Frame(56, 14, 690, 380, view.x, view.y)
    parts = [_axes(frame, axis_label(study, view.x_name), axis_label(study, view.y_name))]
    if view.corner is not None:
        parts.append(f'<path class="reach" d="{frame.path([*view.steps, view.corner])}Z"/>')
        parts.append(f'<path class="stair" d="{frame.path(view.steps)}"/>')
    for trial in sorted(study.complete, key=study.on_front):
        parts.append(_point(study, trial, frame.place(*view.points[trial.id]), study.on_front(trial)))
    if view.outside:
        words = f"{len(view.outside)} beyond the edge"
        parts.append(f'<text class="tick" x="746" y="388" text-anchor="end">{words}</text>')
    return f'<svg class="front" viewBox="0 0 760 446" role="img" aria-label="front">{"".join(parts)}</svg>'


def curve_charts(study: Study, trials: Sequence[Trial]) -> list[tuple[Trial, str]]:
    """A small training curve a trial, all on the same axes, each over the others' in grey."""
    curves = {trial.id: thinned(losses(trial)) for trial in trials}
    drawn = [trial for trial in trials if len(curves[trial.id]) > 1]
    if not drawn:
        return []
    everything = [loss for trial in drawn for _, loss in curves[trial.id]]
    last = max(step for trial in drawn for step, _ in curves[trial.id])
    frame = Frame(30, 8, 160, 84, (0.0, last), span(everything, [min(everything)]))
    curves = {name: below(points, frame.y[1]) for name, points in curves.items()}
    shared = "".join(f'<path d="{frame.path(curves[trial.id])}"/>' for trial in drawn)
    charts = []
    for index, trial in enumerate(drawn):
        backdrop = (
            f'<g id="all-curves" class="others">{shared}</g>' if not index else '<use href="#all-curves"/>'
        )
        colour = theme.COMPOSITIONS[theme.composition(trial.layout)]
        line = f'<path class="curve" style="stroke:{colour}" d="{frame.path(curves[trial.id])}"/>'
        charts.append((trial, f'<svg viewBox="0 0 196 112">{_small_axes(frame)}{backdrop}{line}</svg>'))
    return charts


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS` of the points, evenly spread, the last one kept."""
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def anchor(trial: Trial) -> str:
    """The page's name for a trial's row, safe inside an attribute."""
    return escape("trial-" + "".join(char if char.isalnum() or char in "-_." else "_" for char in trial.id))


def _point(study: Study, trial: Trial, at: tuple[float, float], on_front: bool) -> str:
    colour = theme.COMPOSITIONS[theme.composition(trial.layout)]
    told = ", ".join(f"{clean(name)} {value(trial.values[name])}" for name in study.objectives)
    title = escape(f"{clean(trial.id)}: {told}; {theme.composition(trial.layout)}")
    kind = "point member" if on_front else "point"
    label = ""
    if on_front:
        label = (
            f'<text class="label" x="{at[0] + 9:.1f}" y="{at[1] + 15:.1f}">{escape(clean(trial.id))}</text>'
        )
    circle = f'<circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{6.5 if on_front else 4.6}"'
    dot = f'{circle} style="fill:{colour}"><title>{title}</title></circle>'
    return f'<a href="#{anchor(trial)}">{dot}{label}</a>'


def _axes(frame: Frame, x_label: str, y_label: str) -> str:
    parts = []
    x_ticks, y_ticks = ticks(*frame.x, 7), ticks(*frame.y, 6)
    for tick in x_ticks:
        across, bottom = frame.place(tick, frame.y[0])
        label = tick_label(tick, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0)
        parts.append(f'<path class="grid" d="M{across:.1f} {frame.top}V{bottom:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{across:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{label}</text>'
        )
    for tick in y_ticks:
        left, up = frame.place(frame.x[0], tick)
        label = tick_label(tick, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 1.0)
        parts.append(f'<path class="grid" d="M{left:.1f} {up:.1f}H{frame.left + frame.width}"/>')
        parts.append(
            f'<text class="tick" x="{left - 7:.1f}" y="{up + 4:.1f}" text-anchor="end">{label}</text>'
        )
    middle_x, middle_y = frame.left + frame.width / 2, frame.top + frame.height / 2
    foot = frame.top + frame.height + 42
    parts.append(
        f'<text class="axis" x="{middle_x}" y="{foot}" text-anchor="middle">{escape(x_label)}</text>'
    )
    turned = f'transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="axis" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _small_axes(frame: Frame) -> str:
    parts = []
    y_ticks = ticks(*frame.y, 3)
    for tick in y_ticks:
        left, up = frame.place(0.0, tick)
        label = tick_label(tick, y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else 1.0)
        parts.append(f'<path class="grid" d="M{left} {up:.1f}H{frame.left + frame.width}"/>')
        parts.append(f'<text class="tick" x="{left - 5}" y="{up + 3.5:.1f}" text-anchor="end">{label}</text>')
    right, bottom = frame.place(frame.x[1], frame.y[0])
    parts.append(
        f'<text class="tick" x="{right}" y="{bottom + 14}" text-anchor="end">{frame.x[1]:.0f} steps</text>'
    )
    return "".join(parts)
