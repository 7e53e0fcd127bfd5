"""Stratified draws: even over a block of candidates, uniform each by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.choosers import STRATA, RandomChooser, StratifiedChooser


def chooser(seed: int, index: int) -> StratifiedChooser:
    return StratifiedChooser(np.random.default_rng([seed, index, 7]), seed, index)


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(0, 3))
def test_a_block_of_candidates_takes_every_alternative_once(seed: int, count: int, block: int) -> None:
    drawn = [
        chooser(seed, index).categorical("x", range(count))
        for index in range(block * count, (block + 1) * count)
    ]
    assert sorted(drawn) == list(range(count))


@given(st.integers(0, 1000), st.integers(0, 3))
def test_a_block_of_candidates_takes_every_part_of_a_range_once(seed: int, block: int) -> None:
    indices = range(block * STRATA, (block + 1) * STRATA)
    linear = [chooser(seed, index).real("x", -1.0, 3.0, False) for index in indices]
    assert sorted(int((value + 1) / 4 * STRATA) for value in linear) == list(range(STRATA))
    log = [chooser(seed, index).real("x", 0.001, 0.1, True) for index in indices]
    assert sorted(int(np.log(value / 0.001) / np.log(100) * STRATA) for value in log) == list(range(STRATA))


def test_one_candidate_by_itself_is_uniform() -> None:
    found = [chooser(seed, 3) for seed in range(2000)]
    drawn = np.sort([one.real("x", 0.0, 1.0, False) for one in found])
    assert np.abs(drawn - np.arange(2000) / 2000).max() < 0.04  # Kolmogorov and Smirnov's distance, about
    counts = np.bincount([one.integer("n", 2, 10, 2) // 2 - 1 for one in found], minlength=5)
    assert len(counts) == 5
    assert counts.min() > 320


def test_parameters_are_drawn_independently_of_each_other() -> None:
    counts = np.zeros((4, 4))
    for seed in range(2000):
        one = chooser(seed, 0)
        counts[one.integer("a", 0, 3, 1), one.integer("b", 0, 3, 1)] += 1
    assert counts.min() > 80


def test_ends_of_a_range_may_be_long_integers() -> None:
    drawn = [RandomChooser(np.random.default_rng(i)).real("x", 1, 10**30, log=True) for i in range(20)]
    assert all(1 <= value <= 10**30 for value in drawn)
    assert max(drawn) > 10**10
