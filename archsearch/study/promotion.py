"""What a promotion's record tells: how sure each point's values are, which points differ, and whether the
search that chose them ranked them as they rank now.

`promotion.json` in the run's folder holds it, as `analyse` returns it:

    objectives         name -> direction
    points             one a point: its trials, their count of failures, params, layout, and under `values`
                       for each objective n, mean, sd, low, high (95 % t-interval) and `searched`
    differences        one a pair of points and objective: the mean of a less that of b, its 95 % interval,
                       the test (paired over shared seeds, or Welch's), p, p_holm (corrected for all the
                       differences listed), and whether it is `real`: p_holm < 0.05
    rank_correlation   for each objective Spearman's rho between the searched and the promoted values of the
                       points, with a 95 % bootstrap interval over points, and p: how often chance orders
                       them as well

What too few values cannot tell is null.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from archsearch.study.record import Study
from archsearch.study.statistics import compare, holm, mean_interval, spearman
from archsearch.study.trial import Trial

RESULTS = "promotion.json"
POINT, SEED = "point", "seed"
"""Parameters of a promotion's trials."""

SIGNIFICANT = 0.05

Searched = Mapping[str, float | None]
"""Values of the objectives in the search."""


def analyse(study: Study, searched: Mapping[str, Searched], baselines: Collection[str]) -> dict[str, Any]:
    """Everything above, from the trials that have ended. searched: by point."""
    points = {name: _trials(study, name) for name in searched}
    values = {
        name: {trial.params[SEED]: trial for trial in trials if trial.scores(study.objectives)}
        for name, trials in points.items()
    }
    return {
        "objectives": dict(study.header.objectives),
        "points": [
            {
                "point": name,
                "baseline": name in baselines,
                "trials": [trial.id for trial in trials],
                "failed": sum(trial.state == "failed" for trial in trials),
                "params": trials[0].cost.get("params") if trials else None,
                "layout": trials[0].layout if trials else [],
                "values": {
                    objective: _summary(list(_values(values[name], objective).values()))
                    | {"searched": searched[name].get(objective)}
                    for objective in study.objectives
                },
            }
            for name, trials in points.items()
        ],
        "differences": _differences(study.objectives, values),
        "rank_correlation": {
            objective: _rank_correlation(objective, searched, values) for objective in study.objectives
        },
    }


def read_results(run_dir: Path) -> dict[str, Any] | None:
    """A promotion's `promotion.json`; None where the run has none that can be read."""
    try:
        found = json.loads((run_dir / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "points" in found else None


def _trials(study: Study, point: str) -> list[Trial]:
    return [trial for trial in study.trials.values() if trial.params.get(POINT) == point]


def _values(trials: Mapping[int, Trial], objective: str) -> dict[int, float]:
    """Values by seed; a trial that repeats another has that one's."""
    found = {seed: trial.values[objective] for seed, trial in trials.items()}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def _summary(values: list[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0, "mean": None, "sd": None, "low": None, "high": None}
    return asdict(mean_interval(values))


def _differences(objectives: list[str], trials: Mapping[str, Mapping[int, Trial]]) -> list[dict[str, Any]]:
    found = list(_comparisons(objectives, trials))
    tested = [one for one in found if one["p"] is not None]
    for one, corrected in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one |= {"p_holm": corrected, "real": corrected < SIGNIFICANT}
    return found


def _comparisons(
    objectives: list[str], trials: Mapping[str, Mapping[int, Trial]]
) -> Iterator[dict[str, Any]]:
    for objective in objectives:
        for a, b in itertools.combinations(trials, 2):
            of_a, of_b = _values(trials[a], objective), _values(trials[b], objective)
            if of_a and of_b:
                told = {"objective": objective, "a": a, "b": b, **asdict(compare(of_a, of_b))}
                yield told | {"p_holm": None, "real": False}


def _rank_correlation(
    objective: str, searched: Mapping[str, Searched], trials: Mapping[str, Mapping[int, Trial]]
) -> dict[str, Any]:
    pairs = []
    for name, before in searched.items():
        old, now = before.get(objective), list(_values(trials[name], objective).values())
        if old is not None and math.isfinite(old) and now:
            pairs.append((old, mean_interval(now).mean))
    return asdict(spearman([old for old, _ in pairs], [now for _, now in pairs]))
