"""Proving a search space before anything is trained: every alternative must be good for something."""

from __future__ import annotations

from typing import Any

import numpy as np

from archsearch.experiment.spec import Experiment
from archsearch.search.choosers import Chooser, EdgeChooser, ForcedChooser, RandomChooser, general_name
from archsearch.search.costs import is_cost, score_names
from archsearch.search.holes import Filled, Hole
from archsearch.search.space import START, SearchSpace
from archsearch.spec.errors import SpecError, nearest, shown

RANDOM_FILLS = 50
TRIES = 32
"""Fills in which an alternative is tried before it is called useless."""

Taken = set[tuple[str, Any]]


def check_space(space: SearchSpace) -> None:
    """Raises `SpecError` for an alternative with which no candidate is valid, or an objective that is not
    scored. Alternatives that only some combinations refuse are left to the search."""
    rng = np.random.default_rng(0)
    choosers: list[Chooser] = [EdgeChooser(last=False), EdgeChooser(last=True)]
    choosers += [RandomChooser(rng) for _ in range(RANDOM_FILLS if space.holes else 0)]
    good: Taken = set()
    valid: list[Experiment] = []
    first: SpecError | None = None
    for chooser in choosers:
        filled = space.fill(chooser)
        try:
            valid.append(space.experiment(filled))
            good |= _taken(filled)
        except SpecError as error:
            first = first or error
    for hole in space.holes:
        for value in hole.alternatives:
            if (hole.name, value) not in good:
                valid += _try(space, hole, value, rng, good)
    if not valid:
        assert first is not None
        raise first
    _check_starts(space, rng)
    _check_objectives(space, valid)


def _taken(filled: Filled) -> Taken:
    return {(general_name(name), value) for name, value in filled.params.items()}


def _try(
    space: SearchSpace, hole: Hole, value: Any, rng: np.random.Generator, good: Taken
) -> list[Experiment]:
    """A valid candidate that takes the alternative. Raises where all fail at the same place of the file."""
    chooser = ForcedChooser(rng, {**dict(hole.parents), hole.name: value})
    errors: list[SpecError] = []
    for _ in range(TRIES):
        filled = space.fill(chooser)
        if (hole.name, value) not in _taken(filled):
            continue
        try:
            experiment = space.experiment(filled)
        except SpecError as error:
            errors.append(error)
            continue
        good |= _taken(filled)
        return [experiment]
    if len({str(error).split(": ")[0] for error in errors}) == 1:
        raise SpecError(f"{errors[0]} (always so where {hole.name} is {shown(value)})", errors[0].issues)
    return []


def _check_starts(space: SearchSpace, rng: np.random.Generator) -> None:
    for i in range(len(space.starts)):
        candidates = [space.candidate(RandomChooser(rng), i) for _ in range(TRIES)]
        if all(candidate.experiment is None for candidate in candidates):
            reason = candidates[0].problem.split(": ", 2)[-1]
            raise space.refuse(("search", START, i), f"does not fit this space: {reason}")


def _check_objectives(space: SearchSpace, valid: list[Experiment]) -> None:
    scored = [score_names(experiment) for experiment in valid]
    some, always = set.union(*scored), set.intersection(*scored)
    for name in space.settings.objectives:
        if is_cost(name) or name in always:
            continue
        if name in some:
            raise space.refuse(
                ("objectives", name),
                f"not every candidate is scored on {name!r}; list what it needs under evaluation",
            )
        known = {*some, "params", "active_params", "flops_per_token", "state_bytes"}
        raise space.refuse(("objectives", name), f"unknown objective {name!r}{nearest(name, known)}")
