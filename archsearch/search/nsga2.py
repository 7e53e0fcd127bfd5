"""NSGA-II, as Optuna has it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.search.choosers import Chooser, Label
from archsearch.search.samplers import Result
from archsearch.search.space import Candidate, SearchSpace

POPULATION = 20
"""With Optuna's default of 50 a laptop's whole sweep would be its first, random generation."""


class TrialChooser:
    """Fills holes with an Optuna trial's suggestions."""

    def __init__(self, trial: optuna.Trial):
        self.trial = trial

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        found = self.trial.suggest_categorical(name, choices)
        assert found is not None
        return found

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        return self.trial.suggest_int(name, low, high, step=step)

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        return self.trial.suggest_float(name, low, high, log=log)


class _RecordedSampler(BaseSampler):
    """Proposes what was recorded, and lets `inner` note what it would have noted."""

    def __init__(self, inner: BaseSampler, params: Mapping[str, Any]):
        self.inner = inner
        self.params = params

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self.inner.sample_relative(study, trial, search_space)
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.params[param_name]


class Nsga2:
    """Every proposal comes from a fresh Optuna sampler, seeded for it alone; its population is in the study.

    Stopped trials are told as pruned: they are in no generation.
    """

    def __init__(self, space: SearchSpace):
        optuna.logging.disable_default_handler()
        logging.getLogger("optuna").setLevel(logging.CRITICAL)
        self._trials: dict[str, optuna.Trial] = {}
        self._study = optuna.create_study(
            directions=[objective.direction for objective in space.settings.objectives.values()],
            sampler=RandomSampler(seed=0),
        )

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        return self._ask(trial, RandomSampler(seed=seed) if at_random else _nsga2(seed))

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        # The sampler is run for the notes that it keeps with a trial (its generation).
        return self._ask(trial, _RecordedSampler(_nsga2(seed), params))

    def taken(self, trial: str, candidate: Candidate) -> None:
        """The study has noted the suggestions as they were made."""

    def tell(self, trial: str, result: Result) -> None:
        told = self._trials[trial]
        if result.state == "forgotten":
            self._study.tell(told, state=TrialState.FAIL)
            return
        if result.state == "stopped":
            self._study.tell(told, state=TrialState.PRUNED)
            return
        for name, amount in result.violations.items():
            told.set_constraint(name, amount)
        # Broken constraints are ranked by their amount alone, but among complete trials only.
        self._study.tell(told, list(result.values))

    def _ask(self, trial: str, sampler: BaseSampler) -> Chooser:
        self._study.sampler = sampler
        self._trials[trial] = self._study.ask()
        return TrialChooser(self._trials[trial])


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=POPULATION, seed=seed)
