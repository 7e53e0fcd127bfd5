import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from archsearch.study.fronts import hypervolume, non_dominated, order_front

DIRECTIONS = st.sampled_from(["maximize", "minimize"])


@st.composite
def point_sets(draw, most=9, dims=(1, 2, 3, 4)):
    """Points on a small grid, so that ties and copies are common, with directions."""
    d = draw(st.sampled_from(dims))
    n = draw(st.integers(0, most))
    points_nd = draw(arrays(np.float64, (n, d), elements=st.integers(-3, 4).map(float)))
    return points_nd, draw(st.lists(DIRECTIONS, min_size=d, max_size=d))


def dominates(one, other, directions):
    gains = [a - b if way == "maximize" else b - a for a, b, way in zip(one, other, directions, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def cell_volume(points_nd, reference_d, directions):
    """Hypervolume by cutting space at every coordinate and counting the dominated cells: slow and certain."""
    signs_d = np.where(np.array(directions) == "maximize", -1.0, 1.0)
    costs_nd, corner_d = points_nd * signs_d, np.asarray(reference_d) * signs_d
    axes = [np.unique([*costs_nd[:, axis], corner_d[axis]]) for axis in range(len(corner_d))]
    total = 0.0
    for cell in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        low = np.array([axis[index] for axis, index in zip(axes, cell, strict=True)])
        high = np.array([axis[index + 1] for axis, index in zip(axes, cell, strict=True)])
        if (high <= corner_d).all() and (costs_nd <= low).all(axis=1).any():
            total += float(np.prod(high - low))
    return total


@given(point_sets())
def test_front_is_exactly_what_nothing_dominates(case):
    points_nd, directions = case
    expected = [not any(dominates(other, point, directions) for other in points_nd) for point in points_nd]
    assert non_dominated(points_nd, directions).tolist() == expected


@given(point_sets(most=7), st.integers(0, 2))
def test_hypervolume_counts_the_dominated_cells(case, margin):
    points_nd, directions = case
    reference_d = [-margin if way == "maximize" else margin for way in directions]
    expected = cell_volume(points_nd, reference_d, directions)
    assert hypervolume(points_nd, reference_d, directions) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_hypervolume_agrees_with_random_sampling(d):
    rng = np.random.default_rng(0)
    points_nd = rng.random((12, d))
    samples_sd = rng.random((60_000, d))
    covered = (points_nd[None, :, :] >= samples_sd[:, None, :]).all(axis=2).any(axis=1)
    exact = hypervolume(points_nd, np.zeros(d), ["maximize"] * d)
    assert exact == pytest.approx(covered.mean(), abs=4 * covered.std() / len(samples_sd) ** 0.5)


@given(point_sets(most=8, dims=(2, 3)), st.data())
def test_a_further_point_never_shrinks_the_hypervolume(case, data):
    points_nd, directions = case
    d = points_nd.shape[1]
    further = data.draw(arrays(np.float64, (1, d), elements=st.integers(-3, 4).map(float)))
    before = hypervolume(points_nd, np.zeros(d), directions)
    after = hypervolume(np.vstack((points_nd, further)), np.zeros(d), directions)
    assert after >= before - 1e-12


def test_a_hundred_points_in_four_dimensions_equal_their_mirror_image():
    points_nd = np.random.default_rng(1).random((100, 4))
    up = hypervolume(points_nd, np.zeros(4), ["maximize"] * 4)
    down = hypervolume(-points_nd, np.zeros(4), ["minimize"] * 4)
    shuffled = hypervolume(points_nd[::-1, [2, 0, 3, 1]], np.zeros(4), ["maximize"] * 4)
    assert up == pytest.approx(down, rel=1e-12)
    assert up == pytest.approx(shuffled, rel=1e-12)


def test_by_hand():
    points = [(0.5, 6.0), (0.9, 8.0), (0.4, 7.0)]
    directions = ["maximize", "minimize"]
    assert non_dominated(points, directions).tolist() == [True, True, False]
    assert order_front(points, directions).tolist() == [1, 0, 2]
    assert hypervolume(points, (0.0, 10.0), directions) == pytest.approx(0.9 * 2 + 0.5 * 2)
    assert hypervolume([], (0.0, 10.0), directions) == 0.0
    assert hypervolume([(0.5, 11.0)], (0.0, 10.0), directions) == 0.0


@pytest.mark.parametrize(
    ("points", "directions", "message"),
    [
        ([(1.0, np.nan)], ["minimize", "minimize"], "finite"),
        ([(1.0, 2.0)], ["minimize"], r"shape \(n, 1\)"),
        ([(1.0, 2.0)], ["minimize", "lower"], "maximize or minimize"),
    ],
)
def test_unusable_points_are_refused(points, directions, message):
    with pytest.raises(ValueError, match=message):
        non_dominated(points, directions)
