"""Intervals, tests and ranks, held against scipy where it is installed, and against printed tables."""

import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archsearch.study import statistics as ours

values = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=3, max_size=9)


@pytest.mark.parametrize(
    ("df", "expected"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (9, 2.262157), (100, 1.983972)]
)
def test_quantiles_are_those_of_the_tables(df: int, expected: float) -> None:
    assert ours.t_quantile(0.95, df) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100)
@given(st.floats(0.5, 300), st.floats(-60, 60))
@example(2.0, 1e-8)
@example(300.0, 60.0)
def test_tails_are_scipys(df: float, t: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert ours.t_tail(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-9, abs=0)


@settings(max_examples=100)
@given(values)
def test_tests_and_ranks_are_scipys(a: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(int(abs(sum(a)) * 1000))
    b = [round(x + y, 3) for x, y in zip(a, rng.normal(1, 2, len(a)).tolist(), strict=True)]
    welch, paired = ours.welch(a, b), ours.paired(a, b)
    if len(set(a)) > 1 and len(set(b)) > 1:
        theirs = stats.ttest_ind(a, b, equal_var=False)
        assert welch.p == pytest.approx(theirs.pvalue, rel=1e-7, abs=1e-12)
        low, high = theirs.confidence_interval(0.95)
        assert (welch.low, welch.high) == (pytest.approx(low, rel=1e-7), pytest.approx(high, rel=1e-7))
        rho = stats.spearmanr(a, b).statistic
        assert ours.spearman(a, b).rho == pytest.approx(rho, abs=1e-12)
    if np.std(np.subtract(a, b)) > 1e-9:
        theirs = stats.ttest_rel(a, b)
        assert paired.p == pytest.approx(theirs.pvalue, rel=1e-7, abs=1e-12)
        low, high = theirs.confidence_interval(0.95)
        assert (paired.low, paired.high) == (pytest.approx(low, rel=1e-6), pytest.approx(high, rel=1e-6))


def test_holm_is_the_published_example() -> None:
    # Four tests: 4 x .005, 3 x .01, 2 x .03 and, never below its predecessor, .04.
    assert ours.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ours.holm([0.9, 0.8]) == [1.0, 1.0]
    assert ours.holm([]) == []


def test_shared_seeds_are_paired_and_others_are_not() -> None:
    """What the seeds have in common cancels in pairs: a small difference shows."""
    a = {seed: 5.0 + seed for seed in range(4)}
    b = {seed: 5.1 + seed + 0.01 * (seed % 2) for seed in range(4)}
    assert ours.compare(a, b).test == "paired"
    assert (ours.compare(a, b).p or 1) < 0.001
    others = {seed + 100: value for seed, value in b.items()}
    apart = ours.compare(a, others)
    assert apart.test == "welch"
    assert (apart.p or 0) > 0.5


def test_too_few_values_tell_nothing() -> None:
    assert ours.mean_interval([2.0]) == ours.Interval(1, 2.0)
    assert ours.compare({1: 2.0}, {1: 3.0}) == ours.Comparison("none", 1, -1.0)
    assert ours.spearman([1, 2], [1, 2]).rho is None
    assert ours.spearman([1, 1, 1], [1, 2, 3]).rho is None


def test_values_without_spread() -> None:
    same = {1: 1.0, 2: 1.0, 3: 1.0}
    assert ours.compare(same, same).p == 1.0
    assert ours.compare(same, {1: 0.5, 2: 0.5, 3: 0.5}).p == 0.0
    assert ours.welch([1.0, 1.0], [0.5, 0.5]).p == 0.0


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [ours.mean_interval(rng.normal(3, 2, 4).tolist()) for _ in range(2000)]
    covered = sum((one.low or 0) <= 3 <= (one.high or 0) for one in found) / len(found)
    assert math.isclose(covered, 0.95, abs_tol=0.015)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_chance_orders_are_counted_as_scipy_counts_them(a: list[int], random: random.Random) -> None:
    stats = pytest.importorskip("scipy.stats")
    b = random.sample(range(10), len(a))
    found = ours.spearman(a, b)
    if found.rho is None:
        assert found.p is None
        return

    def statistic(x: list[int]) -> float:
        return float(stats.spearmanr(x, b).statistic)

    theirs = stats.permutation_test((a,), statistic, permutation_type="pairings", n_resamples=np.inf)
    # scipy doubles the smaller tail; ours counts both, which differ where ties make the tails unequal.
    both = np.mean(np.abs(theirs.null_distribution) >= abs(found.rho) - 1e-9)
    assert found.p == pytest.approx(both)


def test_few_points_are_not_called_certain() -> None:
    perfect = ours.spearman([1, 2, 3], [10, 20, 30])
    assert (perfect.rho, perfect.low, perfect.high) == (1.0, None, None)
    assert perfect.p == pytest.approx(2 / 6)
    assert ours.spearman(list(range(6)), list(range(6))).low is None
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    expected = pytest.importorskip("scipy.stats").spearmanr(x, y).pvalue
    assert ours.spearman(x.tolist(), y.tolist()).p == pytest.approx(expected, abs=0.02)
    # Never 0: the order found is one of those tried.
    assert ours.spearman(x.tolist(), x.tolist()).p == pytest.approx(1e-4, abs=2e-4)


def test_the_rank_interval_holds_rho_and_narrows() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    few, many = ours.spearman(x[:12].tolist(), y[:12].tolist()), ours.spearman(x.tolist(), y.tolist())
    for found in (few, many):
        assert found.rho is not None
        assert found.low is not None
        assert found.high is not None
        assert -1 <= found.low <= found.rho <= found.high <= 1
    assert (many.high or 0) - (many.low or 0) < (few.high or 0) - (few.low or 0)
