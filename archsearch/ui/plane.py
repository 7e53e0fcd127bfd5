"""The plane of a study's first two objectives, as the terminal, the picture and the page all draw it."""

from collections.abc import Sequence
from dataclasses import dataclass

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.memory import once_a_layout

Pair = tuple[float, float]
"""A point (x, y), or the two ends of an axis."""


@dataclass(frozen=True)
class Plane:
    """Where every complete trial lies: the first objective up, the second across; one alone both ways.

    `x` and `y` are the axes' ranges; `steps` are the corners of the attained front and `corner` the worst
    one in view, both empty unless there are exactly two objectives; `outside` are trials beyond the ranges,
    `compositions` says how each trial mixes its layers (a key of `theme.COMPOSITIONS`).
    """

    x_name: str
    y_name: str
    points: dict[str, Pair]
    x: Pair
    y: Pair
    steps: list[Pair]
    corner: Pair | None
    outside: list[Trial]
    compositions: dict[str, str]


def plane(study: Study) -> Plane | None:
    """The study's plane; None before a trial is complete."""
    complete = study.complete
    if not complete:
        return None
    y_name = study.objectives[0]
    x_name = study.objectives[1] if len(study.objectives) > 1 else y_name
    points = {trial.id: (trial.values[x_name] or 0.0, trial.values[y_name] or 0.0) for trial in complete}
    front = [points[trial.id] for trial in study.front()]
    x = span([point[0] for point in points.values()], [point[0] for point in front])
    y = span([point[1] for point in points.values()], [point[1] for point in front])
    steps: list[Pair] = []
    corner = None
    if len(study.objectives) == 2:
        directions = study.header.objectives[x_name], study.header.objectives[y_name]
        corner = (_worst(x, directions[0]), _worst(y, directions[1]))
        steps = staircase(front, directions, corner)
    outside = [
        trial
        for trial in complete
        if not (x[0] <= points[trial.id][0] <= x[1] and y[0] <= points[trial.id][1] <= y[1])
    ]
    compositions = {trial.id: _composition(trial) for trial in complete}
    return Plane(x_name, y_name, points, x, y, steps, corner, outside, compositions)


_composition = once_a_layout(theme.composition)


def span(values: Sequence[float], keep: Sequence[float]) -> Pair:
    """An axis that shows all of `keep` and nine tenths of `values`, with a little room at both ends.

    One candidate that barely learned must not squeeze the front into a corner.
    """
    ranked = sorted(values)
    low = min(ranked[len(ranked) // 10], *keep)
    high = max(ranked[-1 - len(ranked) // 10], *keep)
    reach = high - low
    # An end just outside costs little room and is worth showing.
    low = ranked[0] if ranked[0] > low - 0.35 * reach else low
    high = ranked[-1] if ranked[-1] < high + 0.35 * reach else high
    pad = 0.06 * (high - low) or max(abs(high) * 0.05, 0.05)
    return low - pad, high + pad


def staircase(points: Sequence[Pair], directions: tuple[str, str], corner: Pair) -> list[Pair]:
    """Corners of the attained front through (x, y) `points`, for x's and y's directions.

    Between two neighbours the curve keeps the worse of both values, what is sure to be reachable; beyond its
    ends it runs on to the worst `corner`.
    """
    corners: list[Pair] = []
    for point in sorted(points):
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


def below(points: Sequence[Pair], top: float) -> list[Pair]:
    """The points under `top`, for a curve whose steep start would flatten the rest; the last one stays."""
    return [point for point in points if point[1] <= top] or list(points[-1:])


def _worst(reach: Pair, direction: str) -> float:
    return reach[0] if direction == "maximize" else reach[1]
