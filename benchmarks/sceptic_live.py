"""The sceptic's test without a table: the arms of the search on the quickstart's space, all trained.

    python benchmarks/sceptic_live.py train --workers 14 --out FOLDER [--seconds 500] [--budget 30]
        [--seeds 14] [--first 0]
    python benchmarks/sceptic_live.py report --out FOLDER [--plot FILE.png]

The space is search_spaces/quickstart.yaml as it stands, learning rate and mixture continuous; only the tokens
a candidate are 256K, so that the budget goes further. A worker takes one seed, and trains its arms one after
the other; FOLDER/seed-N.jsonl keeps every training, so that another run goes on where this one was stopped
(arms with the same seed begin with the same candidates: those are trained once). The report compares the
seeds that are whole, at a hypervolume that is a share of that of everything found by all arms together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sceptic import one_thread, read_points
from sceptic_compare import DIRECTIONS, GRID, REFERENCE, Arm, Floats, Trace, draw, report, search

from archsearch.experiment import Experiment
from archsearch.search.space import Candidate, SearchSpace, read_space
from archsearch.study import hypervolume

SPACE = Path(__file__).parent.parent / "search_spaces" / "quickstart.yaml"
TOKENS = 256_000
OBJECTIVES = ("recall", "perplexity")
ARMS = (
    Arm("random", "random"),
    Arm("tpe + halving", "tpe", "halving"),
)


class OutOfTime(Exception):
    """The time for this run is over; what was trained is kept."""


class Trained:
    """Scores of candidates by hash, each trained when it is first asked for, and kept in a file."""

    def __init__(self, path: Path, due: float):
        self.path = path
        self.due = due
        self.points: dict[str, dict[str, Any]] = {}
        self._experiments: dict[str, Experiment] = {}
        for point in read_points(path):
            self._merge(point)

    def meet(self, candidate: Candidate) -> str:
        assert candidate.experiment is not None
        experiment = candidate.experiment.with_training(tokens=TOKENS)
        self._experiments[experiment.hash] = experiment
        return experiment.hash

    def at(self, key: str, share: float) -> list[float]:
        return self._scores(key, share)

    def final(self, key: str) -> list[float]:
        return self._scores(key, 1.0)

    def _scores(self, key: str, share: float) -> list[float]:
        name = f"{share:.4f}"
        if name not in self.points.get(key, {}):
            if time.time() > self.due:
                raise OutOfTime
            point = {"hash": key, **_train(self._experiments[key], share)}
            self._merge(point)
            with self.path.open("a") as file:
                file.write(json.dumps(point) + "\n")
        return list(self.points[key][name])

    def _merge(self, point: dict[str, Any]) -> None:
        self.points.setdefault(point["hash"], {}).update(point)


def _train(experiment: Experiment, goal: float) -> dict[str, Any]:
    """Train up to a share of the tokens, scored there and at a third on the way, as halving would."""
    from archsearch.experiment.run import ExperimentRun, score

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder))
        for share in sorted({1 / 3, goal}):
            run.advance(round(share * run.steps) - run.step)
            metrics = run.glance() if share < 1 else run.evaluate()
            found[f"{share:.4f}"] = [round(metrics[name], 5) for name in OBJECTIVES]
        if goal == 1.0:
            test = score(run.model, experiment.with_evaluation(split="test"))
            found["test"] = [round(test[name], 5) for name in OBJECTIVES]
        found["seconds"] = round(run.seconds, 2)
    return found


def work(job: tuple[int, Path, float, float]) -> tuple[int, bool]:
    """Every arm of one seed: (seed, whether it came to its end)."""
    seed, out, due, budget = job
    table = Trained(out / f"seed-{seed}.jsonl", due)
    traces: dict[str, Trace] = {}
    try:
        for arm in ARMS:
            traces[arm.name] = search(_space(), table, arm, seed, budget)
    except OutOfTime:
        return seed, False
    (out / f"seed-{seed}.json").write_text(json.dumps({"budget": budget, "traces": traces}))
    return seed, True


def train(out: Path, workers: int, seconds: float, seeds: range, budget: float) -> int:
    """Train what is not in the folder yet; 0 once every seed is whole."""
    due = time.time() + seconds
    out.mkdir(parents=True, exist_ok=True)
    _space().check_data()  # once here, not once in every worker
    jobs = [(s, out, due, budget) for s in seeds if not (out / f"seed-{s}.json").exists()]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=one_thread) as pool:
        whole = 0
        for seed, done in pool.imap_unordered(work, jobs, chunksize=1):
            whole += done
            print(f"seed {seed}: {'whole' if done else 'to be continued'}", flush=True)
    return 0 if whole == len(jobs) else 3


def curves(out: Path) -> tuple[dict[str, Floats], float, int]:
    """Anytime curves by arm as `sceptic_compare.report` takes them; the budget; how many seeds."""
    seeds = [json.loads(path.read_text()) for path in sorted(out.glob("seed-*.json"))]
    tables = [Trained(path.with_suffix(".jsonl"), 0.0).points for path in sorted(out.glob("seed-*.json"))]
    budget = seeds[0]["budget"]
    everything = {
        split: [point[split] for table in tables for point in table.values() if split in point]
        for split in ("1.0000", "test")
    }
    best = {split: hypervolume(points, REFERENCE, DIRECTIONS) for split, points in everything.items()}
    grid = np.linspace(0, budget, GRID + 1)[1:]
    found: dict[str, Floats] = {}
    for arm in ARMS:
        for split, name, points in (("1.0000", arm.name, grid), ("test", f"{arm.name} test", grid[-1:])):
            found[name] = np.array(
                [
                    [_share(seed["traces"][arm.name], table, at, split) / best[split] for at in points]
                    for seed, table in zip(seeds, tables, strict=True)
                ]
            )
    return found, budget, len(seeds)


def _share(trace: Sequence[tuple[float, str]], table: dict[str, Any], budget: float, split: str) -> float:
    had = [table[key][split] for spent, key in trace if spent <= budget + 1e-9]
    return hypervolume(had, REFERENCE, DIRECTIONS) if had else 0.0


def _space() -> SearchSpace:
    return read_space(SPACE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no training after this long")
    parser.add_argument("--seeds", type=int, default=14)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--budget", type=float, default=30.0, help="an arm and seed, in whole trainings")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.command == "train":
        seeds = range(given.first, given.first + given.seeds)
        return train(given.out, given.workers, given.seconds, seeds, given.budget)
    found, budget, whole = curves(given.out)
    print(f"{whole} seeds, a budget of {budget:g} trainings of {TOKENS:,} tokens:\n")
    print(report(found, ARMS, budget))
    if given.plot is not None:
        draw(found, ARMS, budget, given.plot)
    return 0


if __name__ == "__main__":
    # Set before torch is imported, by the workers too.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    raise SystemExit(main())
