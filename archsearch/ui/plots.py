"""`front.png`: every complete trial by its first two objectives, the front, and the layouts on it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archsearch.study import Study, Trial
from archsearch.ui import theme
from archsearch.ui.blocks import clean
from archsearch.ui.glyphs import kinds, layer_glyph
from archsearch.ui.plane import Pair, Plane, plane
from archsearch.ui.table import mixture_shares
from archsearch.ui.units import count, value

_INK, _FAINT, _GRID = "#1f2933", "#616e7c", "#e4e7eb"
_DOTS_PER_INCH = 200
_LISTED = 8
_LABEL_ROOM = 0.05

UNITS = {
    "recall": "share of queries answered",
    "perplexity": "per token",
    "bits_per_byte": "bits a byte",
    "state_bytes": "bytes",
}
"""What common objectives are measured in."""


def write_front(study: Study, path: Path) -> None:
    """Draw the study's front into `path` as PNG; a study without complete trials gets a plot that says so."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "text.parse_math": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(11, 5.6), facecolor="white")
        FigureCanvasAgg(figure)
        plot, listing = figure.subplots(
            1, 2, width_ratios=(1.55, 1), gridspec_kw={"left": 0.065, "right": 0.985, "wspace": 0.06}
        )
        figure.subplots_adjust(top=0.83, bottom=0.11)
        _title(figure, study)
        _points(plot, study)
        _layouts(listing, study)
        figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": "archsearch"})


def axis_label(study: Study, name: str) -> str:
    """An objective with its unit, where it is known, and the better direction."""
    unit = f", {UNITS[name]}" if name in UNITS else ""
    better = "higher" if study.header.objectives[name] == "maximize" else "lower"
    return f"{clean(name)}{unit} ({better} is better)"


def _title(figure: Any, study: Study) -> None:
    counts = study.counts()
    told = [f"{counts.get('complete', 0)} complete of {study.total} trials"]
    if study.front():
        told.append(f"front of {len(study.front())}")
        told.append(f"hypervolume {value(study.hypervolume())} against ({_reference(study)})")
    figure.text(0.065, 0.945, clean(study.header.name), fontsize=14, fontweight="bold")
    figure.text(0.065, 0.905, "   ·   ".join(told), fontsize=9, color=_FAINT)


def _reference(study: Study) -> str:
    entries = [
        f"{clean(name)} {value(entry)}{'*' if name in study.assumed_reference else ''}"
        for name, entry in study.reference.items()
    ]
    star = "; * worst value seen" if study.assumed_reference else ""
    return ", ".join(entries) + star


def _points(plot: Any, study: Study) -> None:
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color=_GRID, linewidth=0.7)
    plot.set_axisbelow(True)
    view = plane(study)
    if view is None:
        plot.text(0.5, 0.5, "no trial has completed", transform=plot.transAxes, ha="center", color=_FAINT)
        plot.set(xticks=[], yticks=[])
        return
    if view.corner is not None:
        _attained(plot, study, view, view.corner)
    points = view.points
    members = {trial.id for trial in study.front()}
    for name, colour in theme.COMPOSITIONS.items():
        group = [trial for trial in study.complete if view.compositions[trial.id] == name]
        if group:
            edges = [theme.GOLD if trial.id in members else "white" for trial in group]
            sizes = [90 if trial.id in members else 46 for trial in group]
            widths = [2.2 if trial.id in members else 0.8 for trial in group]
            plot.scatter(
                *zip(*(points[trial.id] for trial in group), strict=True),
                s=sizes, c=colour, edgecolors=edges, linewidths=widths, label=name, zorder=3,
            )  # fmt: skip
    for trial in _labelled(study, view):
        plot.annotate(
            clean(trial.id), points[trial.id], xytext=(7, -13), textcoords="offset points",
            fontsize=8.5, fontweight="bold", color="#7a5901", zorder=4,
        )  # fmt: skip
    if view.outside:
        words = f"{len(view.outside)} beyond these axes"
        plot.text(0.99, 0.015, words, transform=plot.transAxes, ha="right", fontsize=8, color=_FAINT)
    plot.set(xlim=view.x, ylim=view.y)
    plot.set(xlabel=axis_label(study, view.x_name), ylabel=axis_label(study, view.y_name))
    _legend(plot)


def _labelled(study: Study, view: Plane) -> list[Trial]:
    """The front's members whose labels keep clear of the one before; the first always has its own."""
    kept: list[tuple[float, float]] = []
    members = []
    for trial in study.front():
        x, y = view.points[trial.id]
        at = (x - view.x[0]) / (view.x[1] - view.x[0]), (y - view.y[0]) / (view.y[1] - view.y[0])
        if all(abs(at[0] - left) > 1.6 * _LABEL_ROOM or abs(at[1] - up) > _LABEL_ROOM for left, up in kept):
            kept.append(at)
            members.append(trial)
    return members


def _attained(plot: Any, study: Study, view: Plane, corner: Pair) -> None:
    """The front's staircase, the region it dominates, and the reference point where it lies in view."""
    plot.fill(*zip(*view.steps, corner, strict=True), color=theme.GOLD, alpha=0.07, linewidth=0, zorder=1)
    plot.plot(*zip(*view.steps, strict=True), color=theme.GOLD, linewidth=1.6, zorder=2)
    at = study.reference[view.x_name], study.reference[view.y_name]
    if view.x[0] <= at[0] <= view.x[1] and view.y[0] <= at[1] <= view.y[1]:
        plot.plot(*at, marker="+", markersize=11, color=_FAINT, zorder=3)
        plot.annotate("reference", at, xytext=(6, 6), textcoords="offset points", fontsize=8, color=_FAINT)


def _legend(plot: Any) -> None:
    from matplotlib.lines import Line2D

    handles, labels = plot.get_legend_handles_labels()
    dots = [
        Line2D([], [], linestyle="", marker="o", color=handle.get_facecolor()[0], markersize=6.5)
        for handle in handles
    ]
    ring = Line2D(
        [], [], linestyle="", marker="o", markerfacecolor="white", markeredgecolor=theme.GOLD,
        markeredgewidth=2, markersize=8,
    )  # fmt: skip
    plot.legend(
        [ring, *dots], ["front", *labels], ncols=len(dots) + 1, loc="lower left", bbox_to_anchor=(-0.01, 1.0),
        frameon=False, fontsize=8, handletextpad=0.2, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip


def _layouts(listing: Any, study: Study) -> None:
    """The front's layouts from input (left) to output (right), parallel branches above one another."""
    listing.axis("off")
    front = study.front()
    step = (len(front) - 1) / (_LISTED - 1)
    shown = front if len(front) <= _LISTED else [front[round(place * step)] for place in range(_LISTED)]
    rows = max(5, len(shown)) + 0.75
    listing.set(xlim=(0, 1), ylim=(rows, -0.45))
    if not shown:
        return
    listing.text(0.0, -0.28, "on the front, input to output", fontsize=8, color=_FAINT)
    for row, trial in enumerate(shown):
        words = "   ".join(f"{clean(name)} {value(trial.values[name])}" for name in study.objectives)
        listing.text(0.0, row + 0.16, clean(trial.id), fontsize=8.5, fontweight="bold", color="#7a5901")
        params = trial.cost.get("params")
        told = words + (f"   {count(params)} params" if isinstance(params, int | float) else "")
        listing.text(0.11, row + 0.16, told, fontsize=8, color=_FAINT)
        width = min(1.0, 0.075 * _natural(trial.layout))
        _cells(listing, trial.layout, (0.0, width), (row + 0.24, row + 0.72))
        _mixture(listing, study, trial, row + 0.77)
    if len(front) > len(shown):
        words = f"{len(shown)} of {len(front)}, evenly spread"
        listing.text(0.99, -0.28, words, fontsize=8, color=_FAINT, ha="right")
    _keys(listing, study, shown)


def _mixture(listing: Any, study: Study, trial: Trial, top: float) -> None:
    left = 0.002
    shares = mixture_shares(study, trial)
    total = sum(share for share, _ in shares) or 1.0
    for share, colour in shares:
        listing.barh(top, 0.6 * share / total, 0.07, left, color=colour, align="edge")
        left += 0.6 * share / total


def _keys(listing: Any, study: Study, shown: Sequence[Trial]) -> None:
    """What the letters and the colours of the mixtures stand for, in two lines at the bottom."""
    letters = [
        (f"{glyph} {name}", colour) for glyph, name, colour in kinds([trial.layout for trial in shown])
    ]
    sources = [
        (clean(name), theme.source_colour(name, study.header.sources)) for name in study.header.sources
    ]
    place = listing.transAxes
    for line, entries in ((0.035, letters[:4]), (-0.01, sources[:6])):
        left = 0.0
        for words, colour in entries:
            spot = {"marker": "s", "markersize": 5.5, "color": colour, "clip_on": False, "transform": place}
            listing.plot(left + 0.01, line + 0.01, **spot)
            listing.text(left + 0.03, line, words, fontsize=7.5, color=_FAINT, transform=place)
            left += 0.075 + 0.0155 * len(words)


def _natural(layout: Sequence[dict[str, Any]]) -> float:
    """A layout's length in layers; a parallel is as long as its longest branch."""
    return sum(
        max((_natural(branch) for branch in item.get("branches", ())), default=1.0)
        if theme.is_parallel(item)
        else 1.0
        for item in layout
    )


def _cells(
    plot: Any, layout: Sequence[dict[str, Any]], across: tuple[float, float], down: tuple[float, float]
) -> None:
    from matplotlib.patches import FancyBboxPatch

    total = _natural(layout) or 1.0
    left = across[0]
    for item in layout:
        right = left + (across[1] - across[0]) * _natural([item]) / total
        if theme.is_parallel(item):
            branches = item.get("branches", ())
            height = (down[1] - down[0]) / max(1, len(branches))
            for index, branch in enumerate(branches):
                top = down[0] + index * height
                _cells(plot, branch, (left, right), (top, top + height))
        else:
            kind, windowed = str(item.get("kind")), bool(item.get("window"))
            colour = theme.layer_colour(str(item.get("family")), kind, windowed)
            inset = 0.004
            plot.add_patch(
                FancyBboxPatch(
                    (left + inset, down[0] + 0.02), right - left - 2 * inset, down[1] - down[0] - 0.04,
                    boxstyle="round,pad=0,rounding_size=0.008", mutation_aspect=6, linewidth=0,
                    facecolor=colour,
                )
            )  # fmt: skip
            size = min(8.5, 15 * (down[1] - down[0]), 115 * (right - left))
            if size >= 3.5 and math.isfinite(size):
                plot.text(
                    (left + right) / 2, (down[0] + down[1]) / 2, layer_glyph(item), fontsize=size,
                    color="white", fontweight="bold", ha="center", va="center_baseline",
                )  # fmt: skip
        left = right
