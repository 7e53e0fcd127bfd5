"""Non-dominated fronts, and how the members of one lie (crowding distance: doi 10.1109/4235.996017; the order
by hypervolume: the greedy solution of its subset selection, doi 10.1162/EVCO_a_00159).

Shape legend: n candidates, m of one front, d objectives. All values are costs: less is better.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from archsearch.study import hypervolume, non_dominated

Floats = npt.NDArray[np.float64]


def fronts(costs_nd: Floats) -> list[npt.NDArray[np.intp]]:
    """Indices of each non-dominated front, the best one first."""
    if costs_nd.shape[-1] == 2:
        return _fronts_2d(costs_nd)
    left_m = np.arange(len(costs_nd))
    found = []
    while len(left_m):
        best_m = non_dominated(costs_nd[left_m], ["minimize"] * costs_nd.shape[1])
        found.append(left_m[best_m])
        left_m = left_m[~best_m]
    return found


def _fronts_2d(costs_nd: Floats) -> list[npt.NDArray[np.intp]]:
    """The same in O(n log n): by the first cost, each point joins the first front that it extends downwards.

    `lowest` are the second costs that the fronts have come down to, which never decrease from front to front.
    """
    lowest: list[float] = []
    members: list[list[int]] = []
    before: tuple[float, float] | None = None
    place = 0
    points = costs_nd.tolist()
    for n in np.lexsort(costs_nd.T[::-1]).tolist():
        point = (points[n][0], points[n][1])
        if point != before:  # equal points do not dominate each other
            place = bisect_right(lowest, point[1])
            if place == len(lowest):
                lowest.append(point[1])
                members.append([])
            lowest[place] = point[1]
        members[place].append(n)
        before = point
    return [np.array(sorted(front), dtype=np.intp) for front in members]


def crowding(costs_nd: Floats) -> Floats:
    """Crowding distance of each of a front's `(n, d)` costs, as `(n,)`; infinite at the ends."""
    n = len(costs_nd)
    distance_n = np.zeros(n)
    for costs_n in costs_nd.T:
        order_n = np.argsort(costs_n, kind="stable")
        sorted_n = costs_n[order_n]
        distance_n[order_n[[0, -1]]] = np.inf
        if n > 2 and sorted_n[-1] > sorted_n[0]:
            distance_n[order_n[1:-1]] += (sorted_n[2:] - sorted_n[:-2]) / (sorted_n[-1] - sorted_n[0])
    return distance_n


def spread(costs_nd: Floats) -> list[int]:
    """An order in which every beginning covers the front: the most balanced point, then always the one
    farthest from those before it, each axis scaled to the front's own range."""
    low_d = costs_nd.min(axis=0)
    range_d = costs_nd.max(axis=0) - low_d
    scaled_nd = (costs_nd - low_d) / np.where(range_d > 0, range_d, 1.0)
    chosen = [int(np.argmin(scaled_nd.sum(axis=1)))]
    distance_n = np.full(len(scaled_nd), np.inf)
    while len(chosen) < len(scaled_nd):
        distance_n = np.minimum(distance_n, np.linalg.norm(scaled_nd - scaled_nd[chosen[-1]], axis=1))
        distance_n[chosen] = -1.0
        chosen.append(int(np.argmax(distance_n)))
    return chosen


def by_gain(costs_nd: Floats, reference_d: Floats) -> tuple[list[int], list[float]]:
    """An order in which every beginning of a front has much of its hypervolume, and what each adds to it:
    always the point that adds most to those before it; at the end, in the order of `spread`, those that add
    nothing.

    reference_d: costs that are worth nothing; where one is NaN (not known), the order is that of `spread`,
    and nothing adds anything.
    """
    rest = spread(costs_nd)
    if np.isnan(reference_d).any():
        return rest, [0.0] * len(rest)
    directions = ["minimize"] * len(reference_d)
    chosen: list[int] = []
    gains: list[float] = []
    volume = 0.0
    # What a point adds never grows as others are chosen: old gains are bounds, and few are computed again.
    bounds = [(-np.inf, place, -1, n) for place, n in enumerate(rest)]
    while bounds:
        bound, place, size, n = heapq.heappop(bounds)
        if size == len(chosen):
            if bound >= 0:
                break
            chosen.append(n)
            gains.append(-bound)
            volume -= bound
        else:
            added = hypervolume(costs_nd[[*chosen, n]], reference_d, directions) - volume
            heapq.heappush(bounds, (-added if added > 1e-12 * volume else 0.0, place, len(chosen), n))
    taken = set(chosen)
    left = [n for n in rest if n not in taken]
    return chosen + left, gains + [0.0] * len(left)
