"""The sceptic's test on the table: every arm of the search, the same budget in tokens, paired by seed.

    python benchmarks/sceptic_compare.py [--seeds 20] [--budget 60 120] [--arms tpe ...] [--table FILE]
        [--plot FILE.png]

Arms go through the proposers and schedulers that a sweep uses, one trial at a time; training is looked up
in the table that `sceptic.py tabulate` wrote. A budget of 60 pays for 60 whole trainings. Only candidates
trained to their end are on a front; its quality is the hypervolume between it and (recall 0, perplexity 16)
divided by that of the whole table's front, as the search sees it (validation), and of the same candidates on
the test split.

Paired over seeds: Wilcoxon's signed-rank test against random search, Holm's correction over the arms, A12
(the share of pairs of seeds in which the arm is better). The control shuffles scores among the candidates: no
sampler may gain on random search there; nor on random search with halving, where it halves too (halving sees
each candidate's own scores, and may gain). The first table is Spearman's correlation between scores at a rung
and at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr, wilcoxon

from archsearch.experiment import Experiment
from archsearch.search.halving import Halving
from archsearch.search.holes import Filled
from archsearch.search.samplers import Proposer
from archsearch.search.settings import SearchSpec
from archsearch.search.space import Candidate, SearchSpace, read_space
from archsearch.study import hypervolume

Floats = npt.NDArray[np.float64]

HERE = Path(__file__).parent
DIRECTIONS = ("maximize", "minimize")
REFERENCE = (0.0, 16.0)
MOST_PROPOSALS = 20_000
GRID = 60
"""Points of the anytime curves."""


@dataclass(frozen=True)
class Arm:
    name: str
    sampler: str
    scheduler: str = "none"
    budget: float = 1.0


ARMS = (
    Arm("random", "random"),
    Arm("random, twice the budget", "random", budget=2.0),
    Arm("random + halving", "random", "halving"),
    Arm("tpe", "tpe"),
    Arm("tpe + halving", "tpe", "halving"),
    Arm("nsga2", "nsga2"),
    Arm("evolution", "evolution"),
    Arm("evolution + halving", "evolution", "halving"),
)
DEFAULT = "tpe + halving"


class Scores(Protocol):
    """What candidates come to, looked up or trained."""

    def meet(self, candidate: Candidate) -> str | None: ...

    def at(self, key: str, share: float) -> list[float]: ...

    def final(self, key: str) -> list[float]: ...


class Remembered(SearchSpace):
    """A space that reads every candidate once: comparing asks for the same few hundred again and again."""

    def experiment(self, filled: Filled) -> Experiment:
        key = frozenset(filled.params.items())
        if key not in _EXPERIMENTS:
            _EXPERIMENTS[key] = super().experiment(filled)
        return _EXPERIMENTS[key]


_EXPERIMENTS: dict[frozenset[tuple[str, Any]], Experiment] = {}


@dataclass
class Table:
    """Scores by candidate: at the shares of training, at the end, on the test split."""

    shares: list[float]
    tokens: int
    points: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path, space: SearchSpace) -> Table:
        """The hashes are those of this version: the file's may be of an earlier one."""
        found = json.loads(gzip.decompress(path.read_bytes()))
        points = {}
        for point in found["points"]:
            experiment = space.replay(point["params"]).experiment
            assert experiment is not None, f"not a candidate of {space.source}: {point['params']}"
            points[experiment.hash] = point
        assert len(points) == len(found["points"]), "two rows of the table are one candidate"
        return cls(found["shares"], found["tokens"], points)

    def shuffled(self, seed: int) -> Table:
        """The same scores, handed out to the candidates at random."""
        keys = list(self.points)
        order = np.random.default_rng(seed).permutation(len(keys))
        mixed = {key: self.points[keys[i]] for key, i in zip(keys, order, strict=True)}
        return Table(self.shares, self.tokens, mixed)

    def at(self, key: str, share: float) -> list[float]:
        near = min(range(len(self.shares)), key=lambda i: abs(self.shares[i] - share))
        assert abs(self.shares[near] - share) < 1e-6, f"the table has no scores at {share}"
        return list(self.points[key]["rungs"][near])

    def meet(self, candidate: Candidate) -> str | None:
        """A candidate's hash; None where the table, not finished, lacks it."""
        assert candidate.experiment is not None
        key = candidate.experiment.hash
        return key if key in self.points else None

    def final(self, key: str) -> list[float]:
        return list(self.points[key]["final"])

    def best(self, split: str) -> float:
        points = [point[split] for point in self.points.values()]
        return hypervolume(points, REFERENCE, DIRECTIONS)


Trace = list[tuple[float, str]]
"""(trainings paid for so far, the candidate that was finished with them)."""


def search(space: SearchSpace, table: Scores, arm: Arm, seed: int, budget: float) -> Trace:
    """One search with this budget, in whole trainings."""
    spec = SearchSpec(sampler=arm.sampler, scheduler=arm.scheduler, seed=seed)  # type: ignore[arg-type]
    settings = space.settings.model_copy(update={"search": spec})
    space = Remembered(space.source, space.text, settings, space.sections)
    proposer, trace = Proposer(space), Trace()
    halving = None
    if spec.halving is not None:
        halving = Halving(spec.halving, {name: o.direction for name, o in settings.objectives.items()})
    spent, ended, asked = 0.0, dict[str, tuple[list[float], float]](), 0
    while spent < budget and asked < MOST_PROPOSALS:
        trial, asked = str(asked), asked + 1
        key = table.meet(proposer.ask(trial))
        if key is None:
            proposer.forget(trial)
            continue
        if key not in ended:
            proposer.accept()
            values, share = train(table, halving, trial, key)
            # What does not fit into the budget is not had.
            spent += share
            ended[key] = (values, share)
            if share == 1.0 and spent <= budget:
                trace.append((spent, key))
        values, share = ended[key]
        if share < 1.0:
            proposer.stop(trial, values, share)
        else:
            proposer.complete(trial, values)
    return trace


def train(table: Scores, halving: Halving | None, trial: str, key: str) -> tuple[list[float], float]:
    """A candidate's values when it was stopped or finished, and the share of its training by then."""
    for level, share in enumerate(halving.shares if halving is not None else []):
        assert halving is not None
        values = table.at(key, share)
        decision = halving.decide(trial, level, values)
        halving.record(trial, level, values)
        if decision == "stop":
            return values, share
    return table.final(key), 1.0


def curve(table: Table, trace: Trace, grid: Floats, split: str = "final") -> Floats:
    """Normalised hypervolume of the front at each budget of the grid."""
    best = table.best(split)
    found = np.zeros(len(grid))
    for i, budget in enumerate(grid):
        had = [table.points[key][split] for spent, key in trace if spent <= budget + 1e-9]
        found[i] = hypervolume(had, REFERENCE, DIRECTIONS) / best if had else 0.0
    return found


def run(
    space: SearchSpace, table: Table, arms: tuple[Arm, ...], seeds: int, budget: float
) -> dict[str, Floats]:
    """Anytime curves by arm, `(seeds, GRID)`, over its own budget; and the test split at the end."""
    found: dict[str, Floats] = {}
    for arm in arms:
        grid = np.linspace(0, budget * arm.budget, GRID + 1)[1:]
        traces = [search(space, table, arm, seed, budget * arm.budget) for seed in range(seeds)]
        found[arm.name] = np.array([curve(table, trace, grid) for trace in traces])
        found[f"{arm.name} test"] = np.array([curve(table, trace, grid[-1:], "test") for trace in traces])
    return found


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction."""
    corrected, largest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = largest
    return corrected


def a12(ours: Floats, theirs: Floats) -> float:
    """Share of pairs in which ours is larger; equal ones count half."""
    wins = (ours[:, None] > theirs[None, :]).mean() + 0.5 * (ours[:, None] == theirs[None, :]).mean()
    return float(wins)


def paired_p(ours: Floats, theirs: Floats) -> float:
    """Two-sided Wilcoxon signed-rank test; 1 where all pairs are equal."""
    return 1.0 if np.allclose(ours, theirs) else float(wilcoxon(ours, theirs).pvalue)


def reached(curves: Floats, level: float, budget: float) -> float | None:
    """Budget at which the mean curve first is at the level; None where it never is."""
    above = np.flatnonzero(curves.mean(axis=0) >= level - 1e-12)
    return None if not len(above) else budget * (above[0] + 1) / GRID


def report(found: dict[str, Floats], arms: tuple[Arm, ...], budget: float) -> str:
    """A table of the arms, each held against the first of them."""
    base = found[arms[0].name][:, -1]
    others = arms[1:]
    corrected = holm({arm.name: paired_p(found[arm.name][:, -1], base) for arm in others})
    level = f"{arms[0].name}'s, reached at"
    lines = [
        f"| arm | hypervolume, mean ± s.d. | on the test split | p (Holm) | A12 | {level} |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        last, test = found[arm.name][:, -1], found[f"{arm.name} test"][:, -1]
        at = reached(found[arm.name], float(base.mean()), budget * arm.budget)
        told = "never" if at is None else f"{at:.0f} of {budget:g}"
        p = f"{corrected[arm.name]:.2g}" if arm.name in corrected else ""
        lines.append(
            f"| {arm.name} | {last.mean():.4f} ± {statistics.stdev(last):.4f} | {test.mean():.4f} | {p} "
            f"| {a12(last, base):.2f} | {told} |"
        )
    return "\n".join(lines)


def correlations(table: Table) -> str:
    lines = ["| share of training | recall | perplexity |", "|---|---|---|"]
    final = np.array([point["final"] for point in table.points.values()])
    for i, share in enumerate(table.shares):
        early = np.array([point["rungs"][i] for point in table.points.values()])
        rho = [float(spearmanr(early[:, d], final[:, d]).statistic) for d in range(2)]
        lines.append(f"| {share:.3f} | {rho[0]:.2f} | {rho[1]:.2f} |")
    return "\n".join(lines)


def draw(found: dict[str, Floats], arms: tuple[Arm, ...], budget: float, path: Path) -> None:
    """Anytime curves: mean over seeds, with the interval of a standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for arm in arms:
        grid = np.linspace(0, budget * arm.budget, GRID + 1)[1:]
        mean, error = found[arm.name].mean(axis=0), found[arm.name].std(axis=0) / len(found[arm.name]) ** 0.5
        axes.plot(grid, mean, label=arm.name, linewidth=2.5 if arm.name == DEFAULT else 1.2)
        axes.fill_between(grid, mean - error, mean + error, alpha=0.15)
    axes.set_xlim(0, budget)
    axes.set_xlabel("tokens trained, in whole trainings")
    axes.set_ylabel("hypervolume of the front, as a share of the best known")
    axes.set_ylim(bottom=max(0.0, float(found["random"][:, GRID // 10].mean()) - 0.05))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=HERE / "sceptic.json.gz")
    parser.add_argument("--space", type=Path, default=HERE / "sceptic.yaml")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=float, nargs="+", default=[60.0, 120.0], help="whole trainings")
    names = [arm.name for arm in ARMS]
    parser.add_argument("--arms", nargs="+", choices=names, default=names, help="beside random, the first")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arms = tuple(arm for arm in ARMS if arm.name in (ARMS[0].name, *arguments.arms))
    space = read_space(arguments.space)
    table = Table.read(arguments.table, space)
    print(f"{len(table.points)} candidates, {table.tokens:,} tokens each; {arguments.seeds} seeds\n")
    print(correlations(table))
    for budget in arguments.budget:
        found = run(space, table, arms, arguments.seeds, budget)
        print(f"\nA budget of {budget:g} whole trainings:\n\n{report(found, arms, budget)}", flush=True)
        if arguments.plot is not None and budget == arguments.budget[0]:
            draw(found, arms, budget, arguments.plot)
    print("\nControl, scores shuffled among the candidates:", flush=True)
    budget = arguments.budget[0]
    for scheduler in ("none", "halving"):
        control = tuple(arm for arm in arms if arm.scheduler == scheduler and arm.budget == 1)
        if len(control) < 2:
            continue
        shuffled = run(space, table.shuffled(0), control, arguments.seeds, budget)
        print(f"\n{report(shuffled, control, budget)}", flush=True)


if __name__ == "__main__":
    main()
