"""What a few repeated measurements can tell: intervals, tests, ranks. Only NumPy and the standard library.

Shape legend: n measurements.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
"""Of every interval."""

RESAMPLES = 2000
LEAST_RESAMPLED = 5
"""Pairs below which resampling says more of their number than of their order."""
MOST_ORDERED = 8
ORDERS = 10_000
"""All orders of up to `MOST_ORDERED` are tried, of more so many."""
_TINY = 1e-300


@dataclass(frozen=True)
class Interval:
    """A mean of n values, their standard deviation, and the interval's ends; None where n is too small."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The mean of a less that of b, its interval, and the two-sided p-value of there being no difference.

    n: pairs, or values of the smaller side. p: None where there are too few values to tell.
    """

    test: Literal["paired", "welch", "none"]
    n: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n pairs; None where it is undefined: fewer than 3, or all one rank.

    low, high: None also where resampling cannot tell: fewer than 5 pairs, or no order among them but one.
    p: share of all orders of one side in which the correlation, of either sign, is as strong.
    """

    n: int
    rho: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def t_tail(t: float, df: float) -> float:
    """Probability that Student's t with df degrees of freedom lies beyond ±|t|."""
    if math.isinf(t):
        return 0.0
    return incomplete_beta(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t))


def t_quantile(level: float, df: float) -> float:
    """The t with `level` of Student's distribution between -t and t, 0 < level < 1."""
    low, high = 0.0, 1.0
    while t_tail(high, df) > 1 - level:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (DLMF 8.17.22, by Lentz's method).

    y: 1 - x, which the caller may know better than a difference from 1 can say.
    """
    if x <= 0 or y <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, y, x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y))
    fraction, c, d = 1.0, 1.0, 0.0
    for i in range(1000):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (_nonzero(1 + term * d))
        c = _nonzero(1 + term / c)
        fraction *= c * d
        if i and abs(1 - c * d) < 1e-15:
            break
    return front * (fraction - 1) / a


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and t-interval of one value or more."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return Interval(n, mean)
    sd = statistics.stdev(values)
    half = t_quantile(level, n - 1) * sd / math.sqrt(n)
    return Interval(n, mean, sd, mean - half, mean + half)


def compare(a: Mapping[int, float], b: Mapping[int, float]) -> Comparison:
    """Are the means of a and b apart? Both map seeds to values.

    Paired by seed (t-test of the differences) where at least two seeds are shared; else Welch's t-test.
    """
    shared = [seed for seed in a if seed in b]
    if len(shared) >= 2:
        return paired([a[seed] for seed in shared], [b[seed] for seed in shared])
    return welch(list(a.values()), list(b.values()))


def paired(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Student's test of the differences between two values or more that belong together."""
    found = mean_interval([x - y for x, y in zip(a, b, strict=True)])
    assert found.sd is not None
    p = _p_value(found.mean, found.sd / math.sqrt(found.n), found.n - 1)
    return Comparison("paired", found.n, found.mean, found.low, found.high, p)


def welch(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Welch's test of two independent samples (doi 10.1093/biomet/34.1-2.28); none below two values each."""
    difference = statistics.fmean(a) - statistics.fmean(b)
    n = min(len(a), len(b))
    if n < 2:
        return Comparison("none", n, difference)
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    error = math.sqrt(va + vb)
    # Without any spread the degrees of freedom do not matter.
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if error > _TINY else float(n)
    half = t_quantile(LEVEL, df) * error
    return Comparison(
        "welch", n, difference, difference - half, difference + half, _p_value(difference, error, df)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (JSTOR 4615733)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = least
    return corrected


def spearman(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Correlation:
    """Rank correlation of n pairs, its percentile bootstrap interval over resampled pairs, and how often
    chance does as well (a permutation test, over all orders up to 8 pairs).

    Resamples in which one side holds a single rank tell nothing and are left out.
    """
    a_n, b_n = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = len(a_n)
    rho = _rho(a_n, b_n) if n >= 3 else None
    if rho is None:
        return Correlation(n)
    rng = np.random.default_rng(seed)
    p = _order_p(ranks(a_n), ranks(b_n), rng)
    if n < LEAST_RESAMPLED:
        return Correlation(n, rho, p=p)
    draws_rn = rng.integers(n, size=(RESAMPLES, n))
    found = [one for drawn_n in draws_rn if (one := _rho(a_n[drawn_n], b_n[drawn_n])) is not None]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if low == high:
        return Correlation(n, rho, p=p)
    return Correlation(n, rho, float(low), float(high), p)


def _order_p(a_n: npt.NDArray[np.float64], b_n: npt.NDArray[np.float64], rng: np.random.Generator) -> float:
    """Share of the orders of b's ranks that go with a's as strongly as theirs does, itself included."""
    n = len(a_n)
    x_n, y_n = a_n - a_n.mean(), b_n - b_n.mean()
    if n <= MOST_ORDERED:
        orders_pn = np.array(list(itertools.permutations(range(n))))
    else:
        orders_pn = rng.permuted(np.tile(np.arange(n), (ORDERS, 1)), axis=1)
        orders_pn[0] = np.arange(n)
    strength_p = np.abs(y_n[orders_pn] @ x_n)
    return float(np.mean(strength_p >= abs(float(x_n @ y_n)) - 1e-9))


def ranks(values_n: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1 as `(n,)`, equal values sharing the mean of theirs."""
    _, inverse_n, counts_u = np.unique(values_n, return_inverse=True, return_counts=True)
    last_u = np.cumsum(counts_u)
    return (last_u - (counts_u - 1) / 2)[inverse_n.reshape(-1)]


def _rho(a_n: npt.NDArray[np.float64], b_n: npt.NDArray[np.float64]) -> float | None:
    x_n, y_n = ranks(a_n), ranks(b_n)
    x_n, y_n = x_n - x_n.mean(), y_n - y_n.mean()
    scale = math.sqrt(float(x_n @ x_n) * float(y_n @ y_n))
    return None if scale == 0 else max(-1.0, min(1.0, float(x_n @ y_n) / scale))


def _p_value(difference: float, error: float, df: float) -> float:
    """Two-sided. Without any spread, a difference is certain and its absence too."""
    if error <= _TINY:
        return 1.0 if difference == 0 else 0.0
    return t_tail(difference / error, df)


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
