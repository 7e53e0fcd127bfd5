"""Uniform points of the simplex, coded as k - 1 independent numbers in [0, 1].

Shape legend: k sources, m of them still to be drawn.

The usual codings (raw stick-breaking, softmax of logits) give the first source most of the weight or none
of it. Here each weight is drawn from its exact conditional distribution given the ones before, so that
uniform numbers map to a uniform point; a sampler that models the numbers independently starts without bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

MAX_CAPPED = 8
"""Sources with a `max`: the volume below sums over all subsets of them."""

_BISECTIONS = 50
_DIGITS = 6


def simplex_point(units: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[float]:
    """The point that k - 1 numbers in [0, 1] stand for: k weights that sum to 1, low <= weight <= high.

    With independent uniform numbers the point is uniform over the bounded simplex.
    """
    room = [top - bottom for bottom, top in zip(low, high, strict=True)]
    left = 1.0 - math.fsum(low)
    extra = []
    for j, unit in enumerate(units):
        drawn = _conditional(min(1.0, max(0.0, unit)), room[j], room[j + 1 :], left)
        extra.append(drawn)
        left = max(0.0, left - drawn)
    extra.append(left)
    weights = [round(bottom + more, _DIGITS) for bottom, more in zip(low, extra, strict=True)]
    return [min(top, max(bottom, w)) for w, bottom, top in zip(weights, low, high, strict=True)]


def _conditional(unit: float, cap: float, later: Sequence[float], left: float) -> float:
    """Quantile `unit` of the next part of `left`, of which each later part takes at most its cap."""
    least, most = max(0.0, left - math.fsum(later)), min(cap, left)
    if most <= least:
        return most
    if cap >= left and all(other >= left for other in later):
        # No cap can bind: the part is left * Beta(1, m), whose quantile has a closed form.
        return left * (1.0 - (1.0 - unit) ** (1.0 / len(later)))
    # The part is at least `least`; measured from there, the volume below t is a capped simplex itself.
    whole = _volume([most - least, *later], left - least)
    below, above = 0.0, most - least
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if _volume([middle, *later], left - least) < unit * whole:
            below = middle
        else:
            above = middle
    return least + (below + above) / 2


def _volume(caps: Sequence[float], total: float) -> float:
    """Volume of {0 <= x_i <= caps_i, sum x = total}, up to a constant that depends on the dimension alone.

    Inclusion-exclusion over the caps that are broken. x -> caps - x maps it onto the same shape with the
    complementary total; the smaller of the two totals loses less to cancellation.
    """
    total = min(total, math.fsum(caps) - total)
    if total <= 0:
        return 0.0
    binding = [cap for cap in caps if cap < total]
    power = len(caps) - 1
    terms = []
    for size in range(len(binding) + 1):
        for chosen in itertools.combinations(binding, size):
            rest = total - math.fsum(chosen)
            if rest > 0:
                terms.append((-1.0) ** size * rest**power)
    return max(0.0, math.fsum(terms))
