"""The sections of a search-space file that say how to search, and hold no holes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from archsearch.search.constraints import Constraint, parse_constraint
from archsearch.search.costs import is_cost
from archsearch.spec.cost_names import CostName
from archsearch.spec.errors import nearest, refuse, shown
from archsearch.spec.layers import Spec

MAX_TRIALS = 100_000


class Objective(Spec):
    """What is optimised. reference: the worst value that counts, a corner of the hypervolume."""

    direction: Literal["maximize", "minimize"]
    reference: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"direction": value} if isinstance(value, str) else value


REFERENCES = {"recall": 0.0, "perplexity": 16.0}
"""Worst values of the default objectives: no question answered; hardly better than counting letters."""


def default_objectives() -> dict[str, Objective]:
    return {"recall": Objective(direction="maximize"), "perplexity": Objective(direction="minimize")}


class SearchSpec(Spec):
    """How candidates are found.

    trials: candidates that are trained. sampler: auto is tpe (multi-objective tree-structured Parzen
    estimator, doi 10.1613/jair.1.13188, multivariate over the holes that occur together); nsga2
    (doi 10.1109/4235.996017) has a population of 20. startup: candidates drawn at random before the
    sampler learns. start_from: model specs or experiments whose layouts are the first candidates, as
    paths relative to the space's file.
    """

    trials: int = Field(default=24, ge=1, le=MAX_TRIALS)
    sampler: Literal["auto", "tpe", "nsga2", "random"] = "auto"
    startup: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    start_from: list[str] = Field(default_factory=list)
    scheduler: Literal["auto", "none"] = "auto"


class Resources(Spec):
    """cpu: cores (and torch threads) a trial. concurrent: most trials at once; default: what fits."""

    cpu: int = Field(default=1, ge=1)
    concurrent: int | None = Field(default=None, ge=1)


def _parse_constraint(value: Any) -> Constraint:
    if isinstance(value, Constraint):
        return value
    if not isinstance(value, str):
        refuse((), f"expected a constraint such as 'params <= 2M', found {shown(value)}")
    try:
        return parse_constraint(value)
    except ValueError as error:
        refuse((), str(error))


class Settings(Spec):
    """A search-space file without its candidates' sections."""

    name: str = Field(default="search", min_length=1, max_length=200)
    objectives: dict[str, Objective] = Field(default_factory=default_objectives, min_length=1)
    constraints: list[
        Annotated[Constraint, PlainValidator(_parse_constraint), PlainSerializer(lambda c: c.text)]
    ] = Field(default_factory=list)
    search: SearchSpec = SearchSpec()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _costs_are_known(self) -> Settings:
        for name in self.objectives:
            if is_cost(name):
                try:
                    CostName.parse(name)
                except ValueError as error:
                    refuse(("objectives", name), str(error))
        return self

    @property
    def references(self) -> dict[str, float]:
        """Reference values that are known, by objective."""
        found = {}
        for name, objective in self.objectives.items():
            value = objective.reference if objective.reference is not None else REFERENCES.get(name)
            if value is not None:
                found[name] = value
        return found


SECTIONS = ("arch", "data", "training", "evaluation")
"""Where holes may stand; together, filled, they are an experiment."""


def check_sections(value: Any) -> None:
    """Refuse what is no search-space file at the top level."""
    if not isinstance(value, dict):
        refuse((), f"expected a mapping with the keys of a search space, found {shown(value)}")
    known = [*SECTIONS, *Settings.model_fields]
    for key in value:
        if key not in known:
            refuse((key,), f"unknown key {key!r}{nearest(key, known)}")
    if "arch" not in value:
        refuse((), "missing key 'arch'")
