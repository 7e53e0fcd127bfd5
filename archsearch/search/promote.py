"""After the search: its best points trained again, longer or larger, with seeds that it never used.

A promotion is a study of its own. What it trains is fixed in its plan (`space.yaml` in its folder) when it
begins, so that it goes on as it began whatever becomes of the run that it came from. Each point and seed is
a trial; scores are those of the test split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from archsearch.experiment import Experiment, load_experiment
from archsearch.search.folder import write_whole
from archsearch.search.planned import PROMOTION, PlannedSpace
from archsearch.search.scaling import scaled
from archsearch.search.settings import NO_STORAGE, SearchSpec, Settings
from archsearch.search.space import read_recorded_space
from archsearch.spec import to_yaml
from archsearch.spec.errors import dotted, issues_of, validate
from archsearch.spec.source import Source
from archsearch.study import Study, StudyError
from archsearch.study.promotion import RESULTS, Searched, analyse
from archsearch.study.schema import FRONT, SPACE, SPEC, TRIALS

FIRST_SEED = 1000
"""New seeds begin here, or above the search's where those reach as far."""


@dataclass(frozen=True)
class Request:
    """What is to be promoted. baselines: trials of the run, or files. tokens None: as many as searched."""

    run: str
    top: int
    seeds: int
    width: float = 1
    depth: int = 1
    tokens: int | None = None
    baselines: tuple[str, ...] = ()

    def changes_from(self, old: Request) -> list[str]:
        """What differs from `old`, but for more seeds, which a promotion may be given later."""
        changed = [
            f"{name}: {getattr(old, name)} -> {value}"
            for name, value in vars(self).items()
            if name not in ("seeds", "run") and getattr(old, name) != value
        ]
        if Path(self.run).resolve() != Path(old.run).resolve():
            changed.insert(0, f"run: {old.run} -> {self.run}")
        if self.seeds < old.seeds:
            changed.append(f"seeds: {old.seeds} -> {self.seeds} (more can be added)")
        return changed


@dataclass(frozen=True)
class Point:
    """One experiment to train anew. searched: what it scored in the search, where it comes from there."""

    experiment: Experiment
    searched: Searched
    baseline: bool = False


@dataclass(frozen=True)
class Plan:
    """What a promotion trains: every point with every seed. settings: objectives and resources."""

    request: Request
    first_seed: int
    settings: Settings
    points: Mapping[str, Point]

    @property
    def seeds(self) -> list[int]:
        return list(range(self.first_seed, self.first_seed + self.request.seeds))

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """Points and seeds, in the order of training: all points once, then all again."""
        return [(point, seed) for seed in self.seeds for point in self.points]

    def experiment(self, point: str, seed: int) -> Experiment:
        return self.points[point].experiment.with_training(seed=seed)

    def space(self) -> PlannedSpace:
        """The plan as a space that a sweep can train."""
        dumped = self.dump()
        search = SearchSpec(trials=len(self.jobs), sampler="random", storage=NO_STORAGE)
        settings = self.settings.model_copy(update={"search": search})
        text = to_yaml(dumped)
        compared = {key: item for key, item in dumped.items() if key != "promotion"}
        return PlannedSpace(Source(SPACE, text), text, settings, {}, plan=self, compared=compared)

    def dump(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", include={"name", "objectives", "resources"})
        return {
            "promotion": {**vars(self.request), "baselines": list(self.request.baselines)},
            "first_seed": self.first_seed,
            "settings": settings,
            "points": {
                name: {
                    "baseline": point.baseline,
                    "searched": dict(point.searched),
                    "experiment": point.experiment.dump(),
                }
                for name, point in self.points.items()
            },
        }


def plan_promotion(request: Request, out: Path) -> Plan:
    """The plan that `out` holds already, or a new one. Trains nothing, writes nothing.

    Raises StudyError where the run has no front, or `out` holds a promotion of something else; ValueError or
    SpecError where a point cannot be scaled or a baseline cannot be read.
    """
    if (out / SPACE).exists():
        plan = read_plan(out)
        if changes := request.changes_from(plan.request):
            raise StudyError(f"{out}: another promotion is in this folder: {'; '.join(changes)}; give --out")
        return replace(plan, request=replace(plan.request, seeds=request.seeds))
    study = Study.read(request.run)
    if study.header.sampler == PROMOTION:
        raise StudyError(f"{request.run}: is a promotion itself; expected the run of a search")
    settings = _settings(study)
    points = _points(study, request)
    seeds = [point.experiment.training.seed for point in points.values()]
    return Plan(request, max(FIRST_SEED, max(seeds) + study.header.seeds), settings, points)


def read_plan(out: Path) -> Plan:
    """The plan in a promotion's folder. Raises StudyError where there is none."""
    value = Source.read(out / SPACE).value if (out / SPACE).exists() else None
    if not isinstance(value, dict) or "promotion" not in value:
        raise StudyError(f"{out}: holds no promotion")
    asked = {**value["promotion"], "baselines": tuple(value["promotion"]["baselines"])}
    points = {
        name: Point(validate(Experiment, item["experiment"]), item["searched"], item["baseline"])
        for name, item in value["points"].items()
    }
    return Plan(Request(**asked), value["first_seed"], validate(Settings, value["settings"]), points)


def spread(points: ArrayLike, directions: Sequence[str], count: int) -> list[int]:
    """Indices of `count` of the `(n, d)` points: the best in each objective, then always the one farthest
    from those chosen, each axis scaled to the points' range. All of them where there are no more."""
    array_nd = np.asarray(points, dtype=float)
    count = min(count, len(array_nd))
    low_d = array_nd.min(axis=0)
    range_d = array_nd.max(axis=0) - low_d
    scaled_nd = (array_nd - low_d) / np.where(range_d > 0, range_d, 1.0)
    chosen: list[int] = []
    for d, direction in enumerate(directions):
        best = int(np.argmax(scaled_nd[:, d]) if direction == "maximize" else np.argmin(scaled_nd[:, d]))
        if best not in chosen:
            chosen.append(best)
    while len(chosen) < count:
        gaps_nm = np.linalg.norm(scaled_nd[:, None] - scaled_nd[chosen][None], axis=2)
        distance_n = gaps_nm.min(axis=1)
        distance_n[chosen] = -1.0
        chosen.append(int(np.argmax(distance_n)))
    return chosen[:count]


def write_results(plan: Plan, out: Path) -> dict[str, Any]:
    """Work out what the promotion's record tells so far, and keep it as `promotion.json`."""
    found = analyse(
        Study.read(out),
        searched={name: point.searched for name, point in plan.points.items()},
        baselines=[name for name, point in plan.points.items() if point.baseline],
    )
    request = {**vars(plan.request), "baselines": list(plan.request.baselines)}
    found = {"request": request, "split": "test", "new_seeds": plan.seeds, **found}
    write_whole(out / RESULTS, json.dumps(found, indent=1) + "\n")
    return found


def _settings(study: Study) -> Settings:
    """The run's objectives and resources; a promotion keeps no constraints: larger models may break them."""
    settings = read_recorded_space(study.run_dir / SPACE).settings
    return Settings(
        name=f"{settings.name}-promoted"[:200],
        objectives=settings.objectives,
        resources=settings.resources,
    )


def _points(study: Study, request: Request) -> dict[str, Point]:
    """The front's points that are chosen, and the baselines, all scaled."""
    front = study.front()
    if not front:
        raise StudyError(f"{request.run}: no trial has completed, so there is no front to promote")
    scores = [trial.scores(study.objectives) or [] for trial in front]
    chosen = [front[index].id for index in spread(scores, study.header.directions, request.top)]
    points = {}
    for trial in [*chosen, *(name for name in request.baselines if name in study.trials)]:
        experiment = load_experiment(_spec_of(study.run_dir, trial))
        values = {name: study.trials[trial].values.get(name) for name in study.objectives}
        points[trial] = Point(experiment, values, baseline=trial not in chosen)
    model = points[chosen[0]].experiment
    for name in request.baselines:
        if name not in study.trials:
            label = Path(name).stem
            if label in points:
                raise ValueError(f"--baseline {name}: {label!r} names another point already; rename the file")
            points[label] = Point(_baseline(name, model), {}, baseline=True)
    return {name: _prepared(point, request) for name, point in points.items()}


def _spec_of(run: Path, trial: str) -> Path:
    """The trial's experiment; a published run may hold its front alone."""
    places = (run / TRIALS / trial / SPEC, run / FRONT / f"{trial}.yaml")
    for place in places:
        if place.exists():
            return place
    raise StudyError(f"{run}: trial {trial} has no experiment file: expected {places[0].relative_to(run)}")


def _baseline(path: str, model: Experiment) -> Experiment:
    """The experiment of a file. What it does not say, and how it is scored, it takes from `model`."""
    if not Path(path).exists():
        raise ValueError(f"--baseline {path}: neither a trial of the run nor a file")
    found = load_experiment(path)
    said = {name: value for name, value in found.dump().items() if name in found.model_fields_set}
    return validate(Experiment, {**model.dump(), **said, "evaluation": model.dump()["evaluation"]})


def _prepared(point: Point, request: Request) -> Point:
    """The point at its new size, with its new budget, to be scored on the test split."""
    values = point.experiment.dump()
    arch = scaled(point.experiment.arch, request.width, request.depth)
    try:
        experiment = validate(Experiment, {**values, "arch": arch}).with_evaluation(split="test")
        if request.tokens is not None:
            experiment = experiment.with_training(tokens=request.tokens)
    except ValidationError as error:
        issue = issues_of(error, Experiment)[0]
        raise ValueError(f"{arch.name}: {dotted(issue.path)}: {issue.message}") from None
    return replace(point, experiment=experiment)
