"""Optuna's samplers: the multi-objective tree-structured Parzen estimator, and NSGA-II."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.search.choosers import Chooser, Label
from archsearch.search.samplers import Result
from archsearch.search.space import Candidate, SearchSpace

POPULATION = 20
"""Of NSGA-II: with Optuna's default of 50 a laptop's whole sweep would be its first, random generation."""

RELATIVE_PARAMS = "tpe:relative_params:0"
"""Where Optuna's TPE notes what it has drawn for a trial that runs."""

STARTUP_FACTOR = 4
"""Proposals, in multiples of `startup`, after which the sampler learns from few feasible candidates."""


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


class OptunaSampler:
    """kind: tpe or nsga2. Every proposal comes from a fresh Optuna sampler, seeded for it alone.

    Stopped trials are told as pruned: worse than all that were trained to their end, better than nothing.
    """

    def __init__(self, kind: str, space: SearchSpace):
        optuna.logging.disable_default_handler()
        logging.getLogger("optuna").setLevel(logging.CRITICAL)
        self.kind = kind
        self.startup = space.search.startup
        self._trials: dict[str, optuna.Trial] = {}
        self._infeasible = 0
        self._study = optuna.create_study(
            directions=[objective.direction for objective in space.settings.objectives.values()],
            sampler=RandomSampler(seed=0),
        )

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        return self._ask(trial, RandomSampler(seed=seed) if at_random else self._sampler(seed))

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        # Only NSGA-II keeps notes of its own with a trial (its generation); TPE need not be run.
        inner = self._sampler(seed) if self.kind == "nsga2" else RandomSampler(seed=0)
        return self._ask(trial, _RecordedSampler(inner, params))

    def taken(self, trial: str, candidate: Candidate) -> None:
        """Make TPE take a running trial for what it is.

        Of running trials it would otherwise count all it had drawn, for holes that turned out not to exist
        too; a record does not tell those, so a study that was continued would go on differently.
        """
        asked = self._trials[trial]
        if self.kind == "tpe":
            asked.storage.set_trial_system_attr(asked._trial_id, RELATIVE_PARAMS, "")

    def tell(self, trial: str, result: Result) -> None:
        told = self._trials[trial]
        if result.state == "forgotten":
            self._study.tell(told, state=TrialState.FAIL)
            return
        if result.state == "stopped":
            told.set_user_attr("values", list(result.values))
            told.set_user_attr("share", result.share)
            if len(result.values) == 1:  # Optuna takes no intermediate values of several objectives
                told.report(result.values[0], step=round(1e6 * result.share))
            self._study.tell(told, state=TrialState.PRUNED)
            return
        for name, amount in result.violations.items():
            told.set_constraint(name, amount)
        self._infeasible += bool(result.violations)
        # Samplers rank broken constraints by their amount alone, but learn from complete trials only.
        self._study.tell(told, list(result.values))

    def _ask(self, trial: str, sampler: BaseSampler) -> Chooser:
        self._study.sampler = sampler
        self._trials[trial] = self._study.ask()
        return TrialChooser(self._trials[trial])

    def _sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate, group and constant_liar are marked experimental
            if self.kind == "nsga2":
                return NSGAIISampler(population_size=POPULATION, seed=seed)
            waits = self._infeasible if len(self._trials) < STARTUP_FACTOR * self.startup else 0
            return TPESampler(
                n_startup_trials=self.startup + waits,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )
