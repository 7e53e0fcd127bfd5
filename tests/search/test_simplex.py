"""Mixtures are uniform over the simplex, bounds included.

Shape legend: n points, k sources.
"""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.simplex import simplex_point

N = 3000
ALPHA_001 = 1.95
"""Two-sample Kolmogorov-Smirnov statistic at a significance of 0.001, in units of sqrt(2 / n)."""

Floats = npt.NDArray[np.float64]


def drawn(low: list[float], high: list[float]) -> Floats:
    rng = np.random.default_rng(0)
    return np.array([simplex_point(rng.random(len(low) - 1), low, high) for _ in range(N)])


def uniform(low: list[float], high: list[float]) -> Floats:
    """Uniform points of the simplex by rejection: what the coding is held against."""
    rng = np.random.default_rng(1)
    kept: list[Floats] = []
    while len(kept) < N:
        points_nk = rng.dirichlet(np.ones(len(low)), 4096)
        inside_n = ((points_nk >= low) & (points_nk <= high)).all(axis=1)
        kept.extend(points_nk[inside_n])
    return np.array(kept[:N])


def distance(a_n: Floats, b_n: Floats) -> float:
    """Two-sample Kolmogorov-Smirnov statistic."""
    at = np.concatenate([a_n, b_n])
    below_a = np.searchsorted(np.sort(a_n), at, side="right") / len(a_n)
    below_b = np.searchsorted(np.sort(b_n), at, side="right") / len(b_n)
    return float(np.abs(below_a - below_b).max())


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0.0] * 4, [1.0] * 4),
        ([0.0] * 8, [1.0] * 8),
        ([0.1, 0.0, 0.0, 0.05], [1.0] * 4),
        ([0.0] * 3, [0.4, 0.5, 0.4]),
        ([0.1, 0.0, 0.0, 0.0, 0.05], [0.3] * 5),
    ],
    ids=["k=4", "k=8", "min", "max", "min and max"],
)
def test_uniform_in_every_weight(low: list[float], high: list[float]) -> None:
    points_nk, expected_nk = drawn(low, high), uniform(low, high)
    for k in range(len(low)):
        assert distance(points_nk[:, k], expected_nk[:, k]) < ALPHA_001 * (2 / N) ** 0.5
        pair = (k + 1) % len(low)
        joint = distance(points_nk[:, k] + points_nk[:, pair], expected_nk[:, k] + expected_nk[:, pair])
        assert joint < ALPHA_001 * (2 / N) ** 0.5


@given(st.data())
def test_bounds_hold_everywhere(data: st.DataObject) -> None:
    """The corners of the coding included."""
    k = data.draw(st.integers(2, 6))
    low = data.draw(st.lists(st.floats(0, 1 / k), min_size=k, max_size=k))
    high = [bottom + data.draw(st.floats(1 / k, 1)) for bottom in low]
    units = data.draw(st.lists(st.floats(0, 1), min_size=k - 1, max_size=k - 1))
    weights = simplex_point(units, low, [min(1.0, top) for top in high])
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    for weight, bottom, top in zip(weights, low, high, strict=True):
        assert bottom <= weight <= min(1.0, top)
