"""Proposing candidates, by one of several samplers behind one small interface.

What a sampler proposes depends on the seed and on what it was told so far, and on nothing else: every
proposal is seeded by (seed, number of proposals before it). A study that was rebuilt from its record
therefore goes on as the undisturbed one would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from archsearch.search.choosers import Chooser, RandomChooser, ReplayChooser
from archsearch.search.space import Candidate, SearchSpace

IMPATIENCE = 10
"""Proposals in a row without a candidate to train, after which one is drawn at random instead."""


@dataclass(frozen=True)
class Result:
    """What became of a candidate.

    complete: trained to its end. stopped: its values are those at `share` of its training. rejected: it broke
    constraints (`violations`, > 0) or could not be trained. forgotten: nothing was learnt.
    """

    state: Literal["complete", "stopped", "rejected", "forgotten"]
    values: tuple[float, ...] = ()
    share: float = 1.0
    violations: Mapping[str, float] = field(default_factory=dict)


class Sampler(Protocol):
    """Chooses the next candidate from what became of those before.

    Every trial id is first proposed or replayed, then taken, and told about once, in any order.
    """

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        """Decides a new candidate. at_random: whatever was learnt is to be left aside this time."""
        ...

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        """Decides as was recorded, and notes what a proposal would have noted."""
        ...

    def taken(self, trial: str, candidate: Candidate) -> None:
        """The candidate that the chooser filled."""
        ...

    def tell(self, trial: str, result: Result) -> None: ...


class RandomSampler:
    """Every candidate independent of the others."""

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        return RandomChooser(np.random.default_rng(seed))

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        return ReplayChooser(params)

    def taken(self, trial: str, candidate: Candidate) -> None: ...

    def tell(self, trial: str, result: Result) -> None: ...


class Proposer:
    """Proposes candidates of a space and learns from what became of them.

    Each proposal is told about once: `complete`, `stop`, `reject` or `forget`. `idle` counts the proposals
    since the last one that was worth training.
    """

    def __init__(self, space: SearchSpace):
        search = space.settings.search
        self.space = space
        self.kind = AUTO if search.sampler == "auto" else search.sampler
        self.seed = search.seed
        self.asked = 0
        self.idle = 0
        self._sampler = make_sampler(self.kind, space)
        self._open: dict[str, None] = {}
        self._seen: list[tuple[float, ...]] = []

    def ask(self, trial: str) -> Candidate:
        """A new candidate, under the id by which it will be told about."""
        start = self.asked if self.asked < len(self.space.starts) else None
        chooser = self._sampler.propose(trial, self._next_seed(), self.idle >= IMPATIENCE)
        return self._take(trial, chooser, start)

    def replay(self, trial: str, params: Mapping[str, Any]) -> Candidate:
        """The recorded candidate, as if it had been proposed now. Raises ValueError for another space's."""
        self.space.replay(params)
        chooser = self._sampler.replay(trial, self._next_seed(), params)
        return self._take(trial, chooser, self.space.start_of(params))

    def accept(self) -> None:
        """The last proposal is being trained."""
        self.idle = 0

    def complete(self, trial: str, values: Sequence[float]) -> None:
        """The candidate was trained and scored: one value an objective."""
        self._seen.append(tuple(values))
        self._tell(trial, Result("complete", tuple(values)))

    def stop(self, trial: str, values: Sequence[float], share: float) -> None:
        """The candidate was trained for a share of its budget and had these values then."""
        self._tell(trial, Result("stopped", tuple(values), share))

    def reject(self, trial: str, violations: Mapping[str, float] | None = None) -> None:
        """The candidate is bad: it breaks constraints, or it could not be trained at all."""
        broken = {name: amount for name, amount in (violations or {}).items() if amount > 0}
        self._tell(trial, Result("rejected", self._worst(), 0.0, broken))

    def forget(self, trial: str) -> None:
        """Nothing was learnt about the candidate."""
        self._tell(trial, Result("forgotten"))

    @property
    def pending(self) -> list[str]:
        """Proposals that nothing was told about yet, oldest first."""
        return list(self._open)

    def _next_seed(self) -> int:
        return int(np.random.SeedSequence([self.seed, self.asked]).generate_state(1)[0])

    def _take(self, trial: str, chooser: Chooser, start: int | None) -> Candidate:
        self.asked += 1
        self.idle += 1
        self._open[trial] = None
        candidate = self.space.candidate(chooser, start)
        self._sampler.taken(trial, candidate)
        return candidate

    def _tell(self, trial: str, result: Result) -> None:
        assert trial in self._open, f"trial {trial} was told about twice"
        del self._open[trial]
        self._sampler.tell(trial, result)

    def _worst(self) -> tuple[float, ...]:
        """The worst value of each objective so far, its reference before there is one."""
        worst = []
        for i, (name, objective) in enumerate(self.space.settings.objectives.items()):
            seen = [values[i] for values in self._seen]
            if name in self.space.settings.references:
                seen.append(self.space.settings.references[name])
            pick = min if objective.direction == "maximize" else max
            worst.append(pick(seen, default=0.0))
        return tuple(worst)


AUTO = "tpe"
"""What `auto` stands for."""


def make_sampler(kind: str, space: SearchSpace) -> Sampler:
    """The sampler of that name, before anything was asked of it."""
    if kind == "random":
        return RandomSampler()
    if kind == "evolution":
        from archsearch.search.evolution import Evolution

        return Evolution(space)
    if kind == "tpe":
        from archsearch.search.parzen import Parzen

        return Parzen(space)
    from archsearch.search.nsga2 import Nsga2

    return Nsga2(space)


def finite(values: Iterable[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
