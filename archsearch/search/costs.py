"""What a candidate is judged by: costs, known from its spec, and scores, known once it is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from archsearch.experiment.spec import Experiment
from archsearch.spec.cost import Cost, model_cost
from archsearch.spec.errors import nearest

COSTS = ("params", "active_params", "flops_per_token", "state_bytes")

_NAME = re.compile(r"([a-z_]+)(?:@(\d{1,9}))?")


@dataclass(frozen=True)
class CostName:
    """`state_bytes@1024`: a cost of a model at a context length in tokens.

    context None stands for the longest length at which the candidate is scored. Costs are those of float32
    activations and caches.
    """

    metric: str
    context: int | None = None

    @classmethod
    def parse(cls, text: str) -> CostName:
        """Raises ValueError, with the nearest cost where the name is unknown."""
        match = _NAME.fullmatch(text.strip())
        if match is None or match[1] not in COSTS:
            word = text.strip().partition("@")[0]
            raise ValueError(f"unknown cost {word!r}{nearest(word, COSTS)}")
        if match[2] is not None and int(match[2]) < 1:
            raise ValueError(f"{text.strip()}: a context is at least 1 token")
        return cls(match[1], int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return self.metric if self.context is None else f"{self.metric}@{self.context}"


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
