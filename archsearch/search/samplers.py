"""Proposing candidates: Optuna's samplers behind one small interface.

What a sampler proposes depends on the seed and on what it was told so far, and on nothing else: every
proposal comes from a fresh sampler, seeded by (seed, number of proposals before it). A study that was
rebuilt from its record therefore goes on as the undisturbed one would have.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.search.choosers import Label
from archsearch.search.space import Candidate, SearchSpace

POPULATION = 20
"""Of NSGA-II: with Optuna's default of 50 a laptop's whole sweep would be its first, random generation."""

IMPATIENCE = 10
"""Proposals in a row without a candidate to train, after which one is drawn at random instead."""

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


class Proposer:
    """Proposes candidates of a space and learns from what became of them.

    Each proposal is told about once: `complete`, `reject` or `forget`. `idle` counts the proposals since the
    last one that was worth training.
    """

    def __init__(self, space: SearchSpace):
        optuna.logging.disable_default_handler()
        logging.getLogger("optuna").setLevel(logging.CRITICAL)
        search = space.settings.search
        self.space = space
        self.kind = "tpe" if search.sampler == "auto" else search.sampler
        self.seed = search.seed
        self.startup = search.startup
        self.asked = 0
        self.idle = 0
        self._trials: dict[str, optuna.Trial] = {}
        self._open: set[str] = set()
        self._infeasible = 0
        self._study = optuna.create_study(
            directions=[objective.direction for objective in space.settings.objectives.values()],
            sampler=RandomSampler(seed=0),
        )

    def ask(self, trial: str) -> Candidate:
        """A new candidate, under the id by which it will be told about."""
        start = self.asked if self.asked < len(self.space.starts) else None
        return self._ask(trial, self._sampler(), start)

    def replay(self, trial: str, params: Mapping[str, Any]) -> Candidate:
        """The recorded candidate, as if it had been proposed now. Raises ValueError for another space's."""
        self.space.replay(params)
        # Only NSGA-II keeps notes of its own with a trial (its generation); the others need not be run.
        sampler = self._sampler() if self.kind == "nsga2" else RandomSampler(seed=0)
        return self._ask(trial, _RecordedSampler(sampler, params), self.space.start_of(params))

    def accept(self) -> None:
        """The last proposal is being trained."""
        self.idle = 0

    def complete(self, trial: str, values: Sequence[float]) -> None:
        """The candidate was trained and scored: one value an objective."""
        self._tell(trial, values)

    def reject(self, trial: str, violations: Mapping[str, float] | None = None) -> None:
        """The candidate is bad: it breaks constraints, or it could not be trained at all."""
        broken = {name: amount for name, amount in (violations or {}).items() if amount > 0}
        for name, amount in broken.items():
            self._trials[trial].set_constraint(name, amount)
        self._infeasible += bool(broken)
        # Samplers rank broken constraints by their amount alone, but learn from complete trials only.
        self._tell(trial, self._worst())

    def forget(self, trial: str) -> None:
        """Nothing was learnt about the candidate."""
        self._close(trial)
        self._study.tell(self._trials[trial], state=TrialState.FAIL)

    @property
    def pending(self) -> list[str]:
        """Proposals that nothing was told about yet, oldest first."""
        return [trial for trial in self._trials if trial in self._open]

    def _ask(self, trial: str, sampler: BaseSampler, start: int | None) -> Candidate:
        self._study.sampler = sampler
        asked = self._study.ask()
        self.asked += 1
        self.idle += 1
        self._trials[trial] = asked
        self._open.add(trial)
        return self.space.candidate(TrialChooser(asked), start)

    def _tell(self, trial: str, values: Sequence[float]) -> None:
        self._close(trial)
        self._study.tell(self._trials[trial], list(values))

    def _close(self, trial: str) -> None:
        assert trial in self._open, f"trial {trial} was told about twice"
        self._open.discard(trial)

    def _worst(self) -> list[float]:
        """The worst value of each objective so far, its reference before there is one."""
        values = [
            trial.values
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if not any(amount > 0 for amount in trial.constraints.values())
        ]
        worst = []
        for i, (name, objective) in enumerate(self.space.settings.objectives.items()):
            seen = [row[i] for row in values]
            if name in self.space.settings.references:
                seen.append(self.space.settings.references[name])
            pick = min if objective.direction == "maximize" else max
            worst.append(pick(seen, default=0.0))
        return worst

    def _sampler(self) -> BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, self.asked]).generate_state(1)[0])
        if self.kind == "random" or self.idle >= IMPATIENCE:
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate, group and constant_liar are marked experimental
            if self.kind == "nsga2":
                return NSGAIISampler(population_size=POPULATION, seed=seed)
            waits = self._infeasible if self.asked < STARTUP_FACTOR * self.startup else 0
            return TPESampler(
                n_startup_trials=self.startup + waits,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )


def finite(values: Iterable[float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
