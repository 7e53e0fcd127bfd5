"""Fronts: whatever way they are found, each is what nothing that is left dominates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from archsearch.search.crowding import by_gain, fronts, spread
from archsearch.study import hypervolume, non_dominated


@given(st.data(), st.integers(1, 3), st.integers(0, 30))
def test_each_front_is_what_nothing_left_dominates(data: st.DataObject, d: int, n: int) -> None:
    costs_nd = data.draw(arrays(np.float64, (n, d), elements=st.integers(-2, 4).map(float)))
    left_m = np.arange(n)
    for front_m in fronts(costs_nd):
        expected_m = left_m[non_dominated(costs_nd[left_m], ["minimize"] * d)]
        assert front_m.tolist() == expected_m.tolist()
        left_m = np.setdiff1d(left_m, front_m)
    assert not len(left_m)


@pytest.mark.parametrize("n", [1, 500])
def test_copies_are_on_one_front_and_a_chain_is_on_as_many_as_it_has_links(n: int) -> None:
    assert [front.tolist() for front in fronts(np.ones((n, 2)))] == [list(range(n))]
    chain = np.repeat(np.arange(n, dtype=float)[:, None], 2, axis=1)
    assert [front.tolist() for front in fronts(chain)] == [[i] for i in range(n)]


@given(st.data(), st.integers(1, 3), st.integers(1, 8))
def test_the_order_by_gain_is_the_greedy_one(data: st.DataObject, d: int, n: int) -> None:
    """Held against choosing by brute force; every point is there once, whether it adds something or not."""
    costs_nd = data.draw(arrays(np.float64, (n, d), elements=st.integers(-3, 3).map(float)))
    reference_d = np.full(d, 2.0)
    order, gains = by_gain(costs_nd, reference_d)
    assert sorted(order) == list(range(n))
    volumes = [hypervolume(costs_nd[order[: i + 1]], reference_d, ["minimize"] * d) for i in range(n)]
    for i, volume in enumerate(volumes):
        best = max(hypervolume(costs_nd[[*order[:i], m]], reference_d, ["minimize"] * d) for m in order[i:])
        assert volume == pytest.approx(best)
        assert gains[i] == pytest.approx(volume - (volumes[i - 1] if i else 0.0), abs=1e-9)


def test_without_a_reference_the_order_is_spread_over_the_front() -> None:
    line = np.array([[x, 10.0 - x] for x in range(11)])
    assert by_gain(line, np.array([20.0, np.nan])) == (spread(line), [0.0] * 11)
