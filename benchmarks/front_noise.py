"""Are the points of a front more than seeds' noise? Re-train some with new seeds and print intervals.

    python benchmarks/front_noise.py RUN [--points 3] [--seeds 3]

Takes the ends of RUN's front and points evenly between them, trains each experiment (front/*.yaml) again with
seeds that the search never used, and scores it on the test split, which the search never saw. Intervals are
95 % t-intervals of the mean over the new seeds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path

from archsearch.experiment import Experiment, load_experiment
from archsearch.study import Study

FIRST_NEW_SEED = 1000
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    study = Study.read(arguments.run)
    objectives = list(study.objectives)
    chosen = spread([trial.id for trial in study.front()], arguments.points)
    seeds = range(FIRST_NEW_SEED, FIRST_NEW_SEED + arguments.seeds)
    jobs = [(arguments.run / "front" / f"{trial}.yaml", seed) for trial in chosen for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), initializer=_one_thread) as pool:
        scores = pool.starmap(retrain, jobs, chunksize=1)

    print(f"{arguments.seeds} new seeds a point, test split; mean and 95 % interval")
    print(f"| trial | {' | '.join(objectives)} | as searched |\n|{'---|' * (len(objectives) + 2)}")
    means: dict[str, dict[str, tuple[float, float]]] = {}
    for trial, found in itertools.groupby(zip(jobs, scores, strict=True), key=lambda item: item[0][0].stem):
        values = [score for _, score in found]
        means[trial] = {name: interval([v[name] for v in values]) for name in objectives}
        cells = " | ".join(f"{mean:.3f} ± {half:.3f}" for mean, half in means[trial].values())
        searched = study.trials[trial].values
        print(f"| {trial} | {cells} | {', '.join(f'{searched[name]:.3f}' for name in objectives)} |")
    for a, b in itertools.combinations(means, 2):
        apart = [name for name in objectives if disjoint(means[a][name], means[b][name])]
        print(f"{a} and {b}: intervals apart in {', '.join(apart) if apart else 'nothing'}")


def spread(ids: list[str], count: int) -> list[str]:
    """The ends and points evenly between them."""
    if len(ids) <= count:
        return ids
    return [ids[round(i * (len(ids) - 1) / (count - 1))] for i in range(count)]


def retrain(path: Path, seed: int) -> dict[str, float]:
    from archsearch.experiment.run import ExperimentRun

    experiment: Experiment = load_experiment(path).with_training(seed=seed).with_evaluation(split="test")
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder))
        run.advance(run.steps)
        return run.evaluate()


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval."""
    if len(values) < 2:
        return values[0], math.inf
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def disjoint(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return abs(a[0] - b[0]) > a[1] + b[1]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
