import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.ui import units
from archsearch.ui.blocks import shares_bar, sparkline
from archsearch.ui.canvas import Canvas, tick_label, ticks
from archsearch.ui.plane import below, span, staircase


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (units.count(987), "987"),
        (units.count(135_200), "135k"),
        (units.count(999_700), "1.00M"),
        (units.count(1_350_000), "1.35M"),
        (units.size(512), "512 B"),
        (units.size(12 * 1024), "12 KiB"),
        (units.size(1.5 * 1024**2), "1.50 MiB"),
        (units.duration(8.42), "8.4s"),
        (units.duration(59.7), "1m00s"),
        (units.duration(192), "3m12s"),
        (units.duration(7500), "2h05m"),
        (units.duration(3 * 86400 + 4 * 3600), "3d04h"),
        (units.value(0.98214), "0.982"),
        (units.value(4.213), "4.21"),
        (units.value(1.3e-5), "1.3e-05"),
        (units.value(float("nan")), "–"),
        (units.value(None), "–"),
        (units.value(0), "0"),
        (units.setting(0.0031622), "0.00316"),
        (units.setting(True), "True"),
    ],
)
def test_units(drawn, expected):
    assert drawn == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 40))
def test_a_mixture_bar_has_its_width_and_is_fair(shares, width):
    bar = shares_bar([(share, f"#00000{index}") for index, share in enumerate(shares)], width)
    assert bar.cell_len == width
    total = sum(shares)
    if total > 0:
        drawn = {str(piece.style): piece.end - piece.start for piece in bar.spans}
        for index, share in enumerate(shares):
            assert abs(drawn.get(f"#00000{index}", 0) - share / total * width) < 1


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_round_inside_and_labelled_apart(low, extent, wanted):
    high = low + extent
    found = ticks(low, high, wanted)
    assert len(found) <= wanted + 1
    slack = 1e-6 * max(abs(low), abs(high), extent)
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 1 and max(map(abs, found)) < 1e4 and extent > 1e-3:
        labels = [tick_label(tick, found[1] - found[0]) for tick in found]
        assert len(set(labels)) == len(labels)


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30),
    st.integers(4, 60),
    st.integers(2, 20),
)
def test_a_canvas_keeps_its_size(points, width, height):
    canvas = Canvas(width, height, (-10.0, 10.0), (-10.0, 10.0))
    canvas.line(points, "red")
    for x, y in points:
        canvas.label(*canvas.mark(x, y, "★", "bold"), "0007", "dim")
    rows = canvas.rows()
    assert len(rows) == height
    assert {row.cell_len for row in rows} == {width}
    framed = canvas.framed("perplexity ↓", "recall ↑")
    assert len(framed) == height + 2


def test_a_canvas_puts_corners_into_corners():
    canvas = Canvas(10, 4, (0.0, 1.0), (0.0, 1.0))
    assert canvas.cell(0, 0) == (0, 3)
    assert canvas.cell(1, 1) == (9, 0)
    canvas.line([(0, 0), (1, 0)], "red")
    assert canvas.rows()[3].plain == "⣀" * 10


@pytest.mark.parametrize(
    ("directions", "points", "corner", "expected"),
    [
        (("minimize", "maximize"), [(1, 1), (2, 3)], (5, 0), [(1, 0), (1, 1), (2, 1), (2, 3), (5, 3)]),
        (("maximize", "maximize"), [(1, 3), (2, 1)], (0, 0), [(0, 3), (1, 3), (1, 1), (2, 1), (2, 0)]),
        (("minimize", "minimize"), [(1, 3), (2, 1)], (5, 5), [(1, 5), (1, 3), (2, 3), (2, 1), (5, 1)]),
        (("maximize", "minimize"), [(1, 1), (2, 3)], (0, 5), [(0, 1), (1, 1), (1, 3), (2, 3), (2, 5)]),
        (("minimize", "maximize"), [], (5, 0), []),
    ],
)
def test_the_staircase_promises_only_what_was_reached(directions, points, corner, expected):
    assert staircase(points, directions, corner) == expected


def test_an_axis_shows_the_front_and_not_the_worst_outlier():
    low, high = span([1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 500], [1, 1.9])
    assert low < 1
    assert 1.9 < high < 3
    low, high = span([2.0], [2.0])
    assert low < 2.0 < high


def test_curves_and_sparklines():
    assert below([(0, 9.0), (1, 3.0), (2, 2.0)], 4.0) == [(1, 3.0), (2, 2.0)]
    assert below([(0, 9.0)], 4.0) == [(0, 9.0)]
    assert sparkline([0, 1, 2, 4], 4) == "▁▂▄█"
    assert sparkline(list(range(100)), 5)[-1] == "█"
    assert sparkline([0.0], 5) == "▁"
    assert sparkline([], 5) == ""


def test_the_rooms_load_nothing_heavy():
    script = (
        "import sys, archsearch.study, archsearch.ui.live, archsearch.ui.report\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'pydantic', 'matplotlib', 'pyarrow', 'pandas')"
        " if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
