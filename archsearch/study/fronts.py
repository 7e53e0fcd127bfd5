"""Pareto fronts and hypervolume, exact in any number of dimensions.

Shape legend: n points, d objectives.

All functions take points as `(n, d)` in the objectives' own units and `directions`, one of "maximize" or
"minimize" an objective. Internally everything is minimised.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from archsearch.study.schema import DIRECTIONS

Floats = NDArray[np.float64]


def non_dominated(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the `(n, d)` points no other point dominates, as `(n,)` booleans.

    A point dominates another when it is no worse in every objective and better in one; equal points do not
    dominate each other, so copies of a front point are all on the front.

    Raises:
        ValueError: a value is not finite, or the shapes disagree.
    """
    costs_nd = _costs(points, directions)
    unique_md, inverse_n = _unique(costs_nd)
    kept_m = _front_2d(unique_md) if costs_nd.shape[1] == 2 else _front_any(unique_md)
    return kept_m[inverse_n]


def order_front(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.intp]:
    """Indices of the `(n, d)` points from best to worst in the first objective, ties by the next ones."""
    costs_nd = _costs(points, directions)
    return np.lexsort(costs_nd.T[::-1])


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str]) -> float:
    """Volume between the `(n, d)` points' front and the `(d,)` reference point, in the objectives' units.

    Points no better than the reference in some objective add nothing. Two dimensions are swept in
    O(n log n); more are split into exclusive volumes, While, Bradstreet, Barone (2012), "A fast way of
    calculating exact hypervolumes".

    Raises:
        ValueError: a value is not finite, or the shapes disagree.
    """
    costs_nd = _costs(points, directions)
    corner_d = _costs(np.reshape(np.asarray(reference, dtype=np.float64), (1, -1)), directions)[0]
    inside_nd = costs_nd[(costs_nd < corner_d).all(axis=1)]
    if not len(inside_nd):
        return 0.0
    return _volume(_unique(inside_nd)[0], corner_d)


def _costs(points: ArrayLike, directions: Sequence[str]) -> Floats:
    if not directions or any(direction not in DIRECTIONS for direction in directions):
        raise ValueError(
            f"directions: expected a list of {' or '.join(DIRECTIONS)}, found {list(directions)!r}"
        )
    array_nd = np.asarray(points, dtype=np.float64)
    if array_nd.size == 0:
        array_nd = array_nd.reshape(0, len(directions))
    if array_nd.ndim != 2 or array_nd.shape[1] != len(directions):
        raise ValueError(f"points: expected shape (n, {len(directions)}), found {array_nd.shape}")
    if not np.isfinite(array_nd).all():
        raise ValueError("points: expected finite values only")
    signs_d = np.where(np.asarray(directions) == "maximize", -1.0, 1.0)
    return array_nd * signs_d


def _unique(costs_nd: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """The different points as `(m, d)`, sorted by the first cost, ties by the next ones, and the place of
    each of the n among them. (`np.unique` does the same, ten times slower.)"""
    order_n = np.lexsort(costs_nd.T[::-1])
    sorted_nd = costs_nd[order_n]
    new_n = np.ones(len(sorted_nd), dtype=bool)
    new_n[1:] = (sorted_nd[1:] != sorted_nd[:-1]).any(axis=1)
    places_n = np.empty(len(order_n), dtype=np.intp)
    places_n[order_n] = np.cumsum(new_n) - 1
    return sorted_nd[new_n], places_n


def _front_2d(sorted_nd: Floats) -> NDArray[np.bool_]:
    """Front of unique points sorted by the first cost: the second must beat every one before."""
    if not len(sorted_nd):
        return np.zeros(0, dtype=bool)
    best_n = np.minimum.accumulate(sorted_nd[:, 1])
    return np.concatenate(([True], sorted_nd[1:, 1] < best_n[:-1]))


def _front_any(sorted_nd: Floats) -> NDArray[np.bool_]:
    """Front of unique, lexicographically sorted points: only earlier ones can dominate later ones."""
    keep_n = np.zeros(len(sorted_nd), dtype=bool)
    front_fd = np.empty((0, sorted_nd.shape[1]))
    for index, point_d in enumerate(sorted_nd):
        if not (front_fd <= point_d).all(axis=1).any():
            keep_n[index] = True
            front_fd = np.vstack((front_fd, point_d))
    return keep_n


def _volume(sorted_nd: Floats, corner_d: Floats) -> float:
    """Hypervolume of unique, lexicographically sorted costs, all strictly inside the corner."""
    d = len(corner_d)
    if d == 1:
        return float(corner_d[0] - sorted_nd[0, 0])
    if d == 2:
        front_fd = sorted_nd[_front_2d(sorted_nd)]
        ceilings_f = np.concatenate(([corner_d[1]], front_fd[:-1, 1]))
        return float(np.sum((corner_d[0] - front_fd[:, 0]) * (ceilings_f - front_fd[:, 1])))
    front_fd = sorted_nd[_front_any(sorted_nd)]
    total = 0.0
    for index, point_d in enumerate(front_fd):
        # Earlier points reach at least as far along the first axis, so what they already cover of this
        # point's box is a prism over the remaining axes.
        limited_md, _ = _unique(np.maximum(front_fd[:index, 1:], point_d[1:]))
        covered = _volume(limited_md, corner_d[1:]) if index else 0.0
        base = float(np.prod(corner_d[1:] - point_d[1:])) - covered
        total += float(corner_d[0] - point_d[0]) * base
    return total
