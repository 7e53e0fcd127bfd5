"""What a search space holds, without training anything."""

from __future__ import annotations

import math

import numpy as np

from archsearch.search.choosers import RandomChooser
from archsearch.search.holes import Size
from archsearch.search.layout import pattern
from archsearch.search.space import Candidate, SearchSpace
from archsearch.spec.quantities import bytes_text, count_text

SAMPLES = 6
ESTIMATED_FROM = 200


def describe(space: SearchSpace, samples: int = SAMPLES) -> str:
    """Lines for a person: the space's size, its holes, and random candidates with their costs."""
    search = space.search
    rng = np.random.default_rng(search.seed)
    drawn = [space.candidate(RandomChooser(rng)) for _ in range(ESTIMATED_FROM if space.holes else 1)]
    kept = sum(not _broken(space, candidate) for candidate in drawn)
    lines = [
        f"{space.name}: {_size_text(space.size)}",
        f"objectives: {', '.join(f'{o.direction} {name}' for name, o in space.settings.objectives.items())}",
        f"search: {search.trials} trials, sampler {search.sampler}, seed {search.seed}"
        + (f", starting from {', '.join(search.start_from)}" if search.start_from else ""),
        f"constraints: {', '.join(c.text for c in space.settings.constraints) or 'none'}"
        f" (kept by {kept} of {len(drawn)} random candidates)",
    ]
    if not space.holes:
        lines.append("no holes: this space is a single candidate, and a sweep over it one trial")
    width = max((len(hole.name) for hole in space.holes), default=0)
    lines += ["holes:"] * bool(space.holes)
    lines += [f"  {hole.name:<{width}}  {hole.range}" for hole in space.holes]
    lines.append("candidates:")
    lines += [f"  {_candidate_text(space, candidate)}" for candidate in drawn[:samples]]
    return "\n".join(lines)


def _size_text(size: Size) -> str:
    count = f"{size.discrete:,}" if size.discrete < 10**9 else f"about 10^{_digits(size.discrete)}"
    layouts = f"{count} combination{'s' * (size.discrete != 1)}"
    if not size.continuous:
        return layouts
    return f"{layouts}, each with up to {size.continuous} continuous dimension{'s' * (size.continuous != 1)}"


def _digits(number: int) -> int:
    """The nearest power of ten, of a number that may be too large for a float."""
    return round(number.bit_length() * math.log10(2))


def _candidate_text(space: SearchSpace, candidate: Candidate) -> str:
    if candidate.experiment is None:
        return f"invalid: {candidate.problem}"
    arch, costs = candidate.experiment.arch, candidate.costs
    summary = costs.summary()
    mixture = ", ".join(f"{name} {w:.0%}" for name, w in candidate.experiment.data.weights.items())
    broken = _broken(space, candidate)
    return (
        f"{pattern(arch.nodes)}  {count_text(summary['params'])} parameters, "
        f"{bytes_text(summary['state_bytes'])} of state at {costs.context} tokens, {mixture}"
        + (f"; breaks {', '.join(broken)}" if broken else "")
    )


def _broken(space: SearchSpace, candidate: Candidate) -> list[str]:
    return [name for name, amount in space.violations(candidate).items() if amount > 0]
