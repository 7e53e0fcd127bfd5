"""The sections of a search-space file that say how to search, and hold no holes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from archsearch.experiment.spec import FolderName
from archsearch.search.constraints import Constraint, parse_constraint
from archsearch.search.costs import is_cost
from archsearch.spec.cost_names import CostName
from archsearch.spec.errors import nearest, refuse, shown, validate
from archsearch.spec.layers import Spec
from archsearch.spec.quantities import Duration, Size

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


FRONT_ORDER = "front"


class HalvingSpec(Spec):
    """Successive halving over tokens trained: only the best `1 / eta` of the trials at a rung go on.

    type: stopping decides when a trial comes to a rung, and lets the first `2 eta - 1` pass; promotion lets
    every trial wait there until it is among the best. eta: of so many trials at a rung, one goes on. start:
    share of the training tokens at the lowest rung; each next one has eta times as many (a small model may
    learn to recall late: scores before half of its training say less of those at its end). by: the order at a
    rung: front (non-dominated fronts, spread out), or an objective's name.
    """

    type: Literal["stopping", "promotion"] = "stopping"
    eta: int = Field(default=2, ge=2, le=16)
    start: float = Field(default=1 / 2, gt=0, lt=1)
    by: str = FRONT_ORDER

    @property
    def shares(self) -> list[float]:
        """Shares of the training tokens at the rungs, lowest first."""
        found = [self.start]
        while found[-1] * self.eta < 1 - 1e-6:
            found.append(found[-1] * self.eta)
        return found


def _parse_scheduler(value: Any) -> str | HalvingSpec:
    """`auto`, `none`, `halving`, or `halving: {fields}`."""
    if isinstance(value, HalvingSpec) or value in ("auto", "none"):
        return value
    if value == "halving":
        return HalvingSpec()
    if isinstance(value, dict) and list(value) == ["halving"]:
        return validate(HalvingSpec, value["halving"] or {}, ("halving",))
    if isinstance(value, dict):
        for key in value:
            if key != "halving":
                refuse((key,), f"unknown key {key!r}; expected one of: halving")
    words = ("auto", "none", "halving")
    refuse((), f"unknown value {shown(value)}{nearest(value, words)}")


Scheduler = Annotated[
    str | HalvingSpec,
    PlainValidator(_parse_scheduler),
    PlainSerializer(lambda found: found if isinstance(found, str) else {"halving": found.model_dump()}),
]


LEAST_SHARE = 0.001
"""Of a GPU; Ray counts ten-thousandths."""

OWN_STORAGE, NO_STORAGE = "auto", "none"
DATABASES = ("sqlite", "mysql", "mariadb", "postgresql", "oracle", "mssql")
"""SQLAlchemy's own; it may know others, which packages add."""


def _known_storage(value: str) -> str:
    if value not in (OWN_STORAGE, NO_STORAGE) and "://" not in value:
        refuse((), f"expected auto, none or a URL such as sqlite:///studies.db, found {shown(value)}")
    database = value.partition("://")[0].partition("+")[0]
    if database not in DATABASES and (hint := nearest(database, DATABASES)).startswith("; did you mean"):
        refuse((), f"unknown database {database!r}{hint}")
    return value


class SearchSpec(Spec):
    """How candidates are found.

    trials: candidates that are trained. sampler: auto is tpe (multi-objective tree-structured Parzen
    estimator, doi 10.1613/jair.1.13188, over all holes together, those that exist); nsga2 (Optuna's;
    doi 10.1109/4235.996017) has a population of 20; evolution mutates layouts (arXiv 1802.01548).
    startup: candidates drawn at random before the sampler learns. start_from: model specs or experiments
    whose layouts are the first candidates, as paths relative to the space's file. scheduler: none trains
    every trial to its end; halving stops those that are behind (`HalvingSpec`); auto is halving as it is
    by default, and none where trials are asked for and told about. seeds: trainings of each trial, with seeds
    that follow each other; its values are their means. storage: an Optuna storage that the study is repeated
    in: auto is optuna.db in the run's folder, none is none, anything else is SQLAlchemy's URL of a database.
    log: trackers that trials are logged to when they end.
    """

    trials: int = Field(default=24, ge=1, le=MAX_TRIALS)
    sampler: Literal["auto", "tpe", "nsga2", "evolution", "random"] = "auto"
    startup: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    start_from: list[str] = Field(default_factory=list)
    scheduler: Scheduler = "auto"
    seeds: int = Field(default=1, ge=1, le=100)
    storage: Annotated[str, AfterValidator(_known_storage)] = OWN_STORAGE
    log: list[Literal["wandb", "mlflow"]] = Field(default_factory=list)

    @property
    def halving(self) -> HalvingSpec | None:
        """The rungs, where there are any."""
        if self.scheduler == "auto":
            return HalvingSpec()
        return self.scheduler if isinstance(self.scheduler, HalvingSpec) else None


class Resources(Spec):
    """What each trial is given.

    cpu: cores (and torch threads). gpu: GPUs, a share of one (0.25: four trials on each) or a whole number;
    above zero, trials train on CUDA. workers: processes that train a trial together by data parallelism, each
    with all of what is said here; default: one, or one for each of several GPUs. custom: amounts of resources
    that the nodes of a Ray cluster declare. concurrent: most trials at once; default: what fits. memory:
    bytes (`4GiB`) that a trial's process may hold; default: nine tenths of the node's, shared evenly.
    time_limit: of a trial's own work (`30s`, `10m`, `2h`); default: none. A trial that goes beyond either is
    ended and has failed.
    """

    cpu: int = Field(default=1, ge=1)
    gpu: float = Field(default=0, ge=0, le=1024, allow_inf_nan=False)
    workers: int | None = Field(default=None, ge=1, le=1024)
    custom: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    concurrent: int | None = Field(default=None, ge=1)
    memory: Size | None = Field(default=None, ge=1)
    time_limit: Duration | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_possible(self) -> Resources:
        for name in self.custom:
            if name.lower() in ("cpu", "gpu", "memory", "object_store_memory") or not name:
                refuse(("custom", name), "expected the name of a custom resource; cpu and gpu have their own")
        amounts = [(("gpu",), self.gpu), *((("custom", name), n) for name, n in self.custom.items())]
        for where, amount in amounts:
            if amount > 1 and amount != int(amount):
                refuse(where, f"expected a share of one or a whole number, found {amount:g}")
            if 0 < amount < LEAST_SHARE:
                refuse(where, f"expected at least {LEAST_SHARE:g}, found {amount:g}")
        if (self.workers or 1) > 1 and self.gpu not in (0, 1):
            refuse(("gpu",), f"expected 0 or 1, for each of the {self.workers} workers, found {self.gpu:g}")
        return self

    @property
    def device(self) -> str:
        """Where trials train."""
        return "cuda" if self.gpu else "cpu"

    @property
    def processes(self) -> int:
        """How many train a trial together."""
        return self.workers or max(1, int(self.gpu))

    @property
    def bundle(self) -> dict[str, float]:
        """What each of a trial's processes has of a node, by Ray's names."""
        gpu = {"GPU": min(1.0, self.gpu)} if self.gpu else {}
        return {"CPU": float(self.cpu), **gpu, **self.custom}

    @property
    def seat(self) -> dict[str, float]:
        """What the process that reports a trial asks for: next to nothing where others train it."""
        return self.bundle if self.processes == 1 else {"memory": 1.0}


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

    name: FolderName = "search"
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
        halving = self.search.halving
        if halving is not None and halving.by not in (FRONT_ORDER, *self.objectives):
            known = (FRONT_ORDER, *self.objectives)
            hint = nearest(halving.by, known)
            refuse(("search", "scheduler", "halving", "by"), f"unknown objective {halving.by!r}{hint}")
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
