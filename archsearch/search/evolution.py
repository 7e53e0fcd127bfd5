"""Regularized evolution (arXiv 1802.01548) for several objectives.

The newest members form the population, whatever they scored: the old die, so that a lucky score does not
breed for ever. Of a few members drawn at random the best is the parent, by non-dominated front and then by
crowding distance (doi 10.1109/4235.996017); its child is a mutation of it (`archsearch.search.mutations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archsearch.search.choosers import Chooser, RandomChooser, ReplayChooser
from archsearch.search.crowding import crowding, fronts
from archsearch.search.mutations import Mutator
from archsearch.search.samplers import Result
from archsearch.search.space import Candidate, SearchSpace

POPULATION = 40
TOURNAMENT = 8
TRIES = 20
"""Children that are drawn until one keeps the constraints and is new."""


@dataclass(frozen=True)
class _Member:
    params: dict[str, Any]
    costs: tuple[float, ...]
    share: float


class Evolution:
    """Needs `startup` random candidates to begin with. Stopped trials are worse than all that were not."""

    def __init__(self, space: SearchSpace):
        self.space = space
        self.startup = space.search.startup
        self.signs = [-1.0 if o.direction == "maximize" else 1.0 for o in space.settings.objectives.values()]
        self._mutator = Mutator(space.holes)
        self._params: dict[str, dict[str, Any]] = {}
        self._members: list[_Member] = []
        self._seen: set[str] = set()

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        rng = np.random.default_rng(seed)
        if at_random or len(self._members) < self.startup:
            return RandomChooser(rng)
        for _ in range(TRIES):
            child = self.space.candidate(self._mutator.child(self._parent(rng).params, rng))
            if child.experiment is None or child.experiment.hash in self._seen:
                continue
            if not any(amount > 0 for amount in self.space.violations(child).values()):
                return ReplayChooser(child.params)
        return RandomChooser(rng)

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        return ReplayChooser(params)

    def taken(self, trial: str, candidate: Candidate) -> None:
        self._params[trial] = candidate.params
        if candidate.experiment is not None:
            self._seen.add(candidate.experiment.hash)

    def tell(self, trial: str, result: Result) -> None:
        if result.state in ("complete", "stopped"):
            costs = tuple(sign * value for sign, value in zip(self.signs, result.values, strict=True))
            self._members.append(_Member(self._params[trial], costs, result.share))

    def _parent(self, rng: np.random.Generator) -> _Member:
        living = self._members[-POPULATION:]
        drawn = rng.choice(len(living), size=min(TOURNAMENT, len(living)), replace=False)
        fitness = self._fitness(living)
        return living[min(drawn, key=lambda i: fitness[i])]

    def _fitness(self, living: list[_Member]) -> list[tuple[float, int, float]]:
        """Less is fitter: trained further, of a better front, with fewer neighbours."""
        found: list[tuple[float, int, float]] = [(0.0, 0, 0.0)] * len(living)
        for share in {member.share for member in living}:
            same = [i for i, member in enumerate(living) if member.share == share]
            costs_nd = np.array([living[i].costs for i in same])
            for front, members_m in enumerate(fronts(costs_nd)):
                for m, distance in zip(members_m, crowding(costs_nd[members_m]), strict=True):
                    found[same[m]] = (-share, front, -float(distance))
        return found
