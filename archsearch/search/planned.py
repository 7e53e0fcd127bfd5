"""A space whose candidates are decided beforehand, so that a sweep trains and records them like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from archsearch.experiment import Experiment
from archsearch.search.holes import Size
from archsearch.search.samplers import Proposer
from archsearch.search.space import Candidate, SearchSpace
from archsearch.study.promotion import POINT, SEED

PROMOTION = "promotion"
"""Stands where the record of a search names its sampler."""


class Jobs(Protocol):
    """What is to be trained, in this order: (point, seed) each."""

    @property
    def jobs(self) -> Sequence[tuple[str, int]]: ...

    def experiment(self, point: str, seed: int) -> Experiment: ...


@dataclass(frozen=True, kw_only=True)
class PlannedSpace(SearchSpace):
    """A space without holes or choice. compared: what may not change while a run goes on."""

    plan: Jobs
    compared: Mapping[str, Any]

    @cached_property
    def size(self) -> Size:
        return Size(len(self.plan.jobs), 0)

    @cached_property
    def samples(self) -> list[Experiment]:
        return [self.plan.experiment(point, seed) for point, seed in self.plan.jobs]

    def proposer(self) -> Proposer:
        return PlannedProposer(self)

    @cached_property
    def _compared(self) -> dict[str, Any]:
        return dict(self.compared)

    def changes_since(self, recorded: Path) -> list[str]:
        """None: the plan was read from there."""
        return []

    def replay(self, params: Mapping[str, Any]) -> Candidate:
        try:
            return Candidate(dict(params), self.plan.experiment(params[POINT], params[SEED]))
        except KeyError as error:
            raise ValueError(f"{error.args[0]}: not in the plan") from None


class PlannedProposer(Proposer):
    """Proposes one job after the other and learns nothing."""

    def __init__(self, space: PlannedSpace):
        super().__init__(space)
        self.kind = PROMOTION
        self._jobs = space.plan.jobs

    def ask(self, trial: str) -> Candidate:
        point, seed = self._jobs[self.asked]
        return self.replay(trial, {POINT: point, SEED: seed})

    def replay(self, trial: str, params: Mapping[str, Any]) -> Candidate:
        self.asked += 1
        self._open[trial] = None
        return self.space.replay(params)
