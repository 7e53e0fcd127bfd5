"""What a candidate is judged by: costs, known from its spec, and scores, known once it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from archsearch.experiment.spec import Experiment
from archsearch.spec.cost import Cost, model_cost
from archsearch.spec.cost_names import COSTS, CostName


@dataclass
class CandidateCosts:
    """Costs of one experiment's model, each context worked out once."""

    experiment: Experiment
    _totals: dict[int, Cost] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """The longest length at which text is scored."""
        return max(self.experiment.contexts)

    def __call__(self, name: CostName) -> float:
        """Raises ValueError for a context beyond the model's learned positions."""
        return float(self.summary(name.context)[name.metric])

    def summary(self, context: int | None = None) -> dict[str, int]:
        """Every cost at `context`."""
        context = context or self.context
        if context not in self._totals:
            self._totals[context] = model_cost(self.experiment.arch, context).total
        return self._totals[context].as_dict()


def is_cost(name: str) -> bool:
    """Whether `name` is a cost, as opposed to a score of the trained model."""
    return name.partition("@")[0] in COSTS


def objective_values(
    objectives: Iterable[str], costs: CandidateCosts, metrics: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Each objective's value, from the costs or from the scores; None where there is none."""
    return {name: costs(CostName.parse(name)) if is_cost(name) else metrics.get(name) for name in objectives}


def score_names(experiment: Experiment) -> set[str]:
    """Names of the scores that evaluating `experiment` yields."""
    names: set[str] = set()
    for domain in experiment.domains:
        for context in experiment.contexts:
            names |= {f"{measure}/{domain}@{context}" for measure in ("nll", "perplexity", "bits_per_byte")}
    if experiment.domains:
        names |= {"perplexity", "bits_per_byte"}
    for task in experiment.recall_tasks:
        trained = experiment.data.source(task).length
        lengths = experiment.evaluation.recall_contexts or ([trained] if trained else [])
        names |= {f"recall/{task}@{length}" for length in lengths}
    if experiment.recall_tasks:
        names.add("recall")
    return names
