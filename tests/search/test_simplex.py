"""Mixtures are uniform over the simplex, bounds included.

Shape legend: n points, k sources.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.samplers import Proposer
from archsearch.search.simplex import simplex_point
from archsearch.search.space import SearchSpace, read_space

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


STARTS, STARTUP = 200, 10
"""Searches, each with a seed of its own, and their random candidates: the 2,000 points of the bar."""

BAR = 0.05
"""Kolmogorov-Smirnov distance to the exact distribution. Chance alone exceeds it once in 10,000."""


def mixing(k: int, low: float, folder: Path) -> SearchSpace:
    """A space of `k` sources; `low` is the least weight of the first two."""
    names = [f"s{i}" for i in range(k)]
    (folder / "space.yaml").write_text(
        "arch: {tokenizer: bytes, d_model: 8, layers: [linear]}\n"
        f"data: {{mixture: {{$simplex: {{of: [{', '.join(names)}], min: {{s0: {low}, s1: {low}}}}}}}, "
        f"sources: {{{', '.join(f'{name}: {{domain: {{name: code}}}}' for name in names)}}}}}\n"
    )
    return read_space(folder / "space.yaml")


def started(space: SearchSpace, sampler: str) -> Floats:
    """(n, k) weights of the first candidates of many searches, each trained and told about."""
    drawn = []
    for seed in range(STARTS):
        search = space.search.model_copy(update={"sampler": sampler, "seed": seed, "startup": STARTUP})
        settings = space.settings.model_copy(update={"search": search})
        proposer = Proposer(replace(space, settings=settings))
        for place in range(STARTUP):
            candidate = proposer.ask(str(place))
            assert candidate.experiment is not None
            drawn.append(list(candidate.experiment.data.mixture.values()))
            # The first weight is worth searching for: a sampler that learns too early would show it.
            proposer.complete(str(place), [drawn[-1][0], 10 - drawn[-1][0]])
    return np.array(drawn)


def from_exact(values_n: Floats, cdf: Callable[[Floats], Floats]) -> float:
    """One-sample Kolmogorov-Smirnov distance."""
    sorted_n = np.sort(values_n)
    n = len(sorted_n)
    below_n, above_n = np.arange(n) / n, np.arange(1, n + 1) / n
    return float(max((above_n - cdf(sorted_n)).max(), (cdf(sorted_n) - below_n).max()))


@pytest.mark.parametrize("sampler", ["random", "tpe", "evolution", "nsga2"])
@pytest.mark.parametrize(("k", "low"), [(4, 0.0), (8, 0.0), (4, 0.15), (8, 0.2)])
def test_first_candidates_of_every_sampler_are_uniform(
    sampler: str, k: int, low: float, tmp_path: Path
) -> None:
    """Against the exact distributions of a uniform point: a weight is Beta(1, k - 1), the sum of two
    Beta(2, k - 2), a share of two uniform; the largest and the smallest weight by inclusion-exclusion."""
    points_nk = started(mixing(k, low, tmp_path), sampler)
    assert len(points_nk) == 2000
    assert points_nk.sum(axis=1) == pytest.approx(1, abs=1e-5)
    least_k = np.array([low, low] + [0.0] * (k - 2))
    assert (points_nk >= least_k).all()
    unit_nk = (points_nk - least_k) / (1 - least_k.sum())

    def largest(x_n: Floats) -> Floats:
        parts = [(-1) ** j * math.comb(k, j) * np.clip(1 - j * x_n, 0, None) ** (k - 1) for j in range(k + 1)]
        return np.sum(parts, axis=0)

    pair_nk = unit_nk + np.roll(unit_nk, 1, axis=1)
    found = {
        "largest": from_exact(unit_nk.max(axis=1), largest),
        "smallest": from_exact(unit_nk.min(axis=1), lambda x: 1 - np.clip(1 - k * x, 0, None) ** (k - 1)),
    }
    for i in range(k):
        found[f"weight {i}"] = from_exact(unit_nk[:, i], lambda x: 1 - (1 - x) ** (k - 1))
        found[f"pair {i}"] = from_exact(
            pair_nk[:, i], lambda x: 1 - (1 - x) ** (k - 1) - (k - 1) * x * (1 - x) ** (k - 2)
        )
        found[f"share {i}"] = from_exact(unit_nk[:, i] / pair_nk[:, i], lambda x: x)
    assert {name: distance for name, distance in found.items() if distance > BAR} == {}
