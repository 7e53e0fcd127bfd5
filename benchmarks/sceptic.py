"""The sceptic's test: does the search beat random search, for the same tokens, on the real task?

    python benchmarks/sceptic.py tabulate --workers 16 --out FOLDER [--seconds 500]

`tabulate` trains every candidate of benchmarks/sceptic.yaml once, as a sweep would, scored where schedulers
may look (a quarter of the held-out data) and at the end (all of it, and the test split besides). It adds to
FOLDER/points.jsonl, goes on where it was stopped, and writes FOLDER/sceptic.json.gz, the table that is kept
beside this script. About 16 CPU-seconds a candidate, 400 of them. `--smoke` trains four for a moment.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.search.choosers import Label
from archsearch.search.space import SearchSpace, read_space

HERE = Path(__file__).parent
SPACE = HERE / "sceptic.yaml"
TABLE = HERE / "sceptic.json.gz"
POINTS = "points.jsonl"

SHARES = (1 / 27, 1 / 9, 1 / 8, 1 / 4, 1 / 3, 1 / 2)
"""Of the training tokens: where a candidate is scored before its end, for halving by 2, 3 and 4."""

SMOKE = {"tokens": 8192}


class Odometer:
    """Chooses every combination in turn: `next` after each candidate says whether there is another."""

    def __init__(self) -> None:
        self._digits: list[list[int]] = []
        self._at = 0

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        if self._at == len(self._digits):
            self._digits.append([0, len(choices)])
        digit = self._digits[self._at][0]
        self._at += 1
        return choices[digit]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        found = self.categorical(name, range(low, high + 1, step))
        assert isinstance(found, int)
        return found

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        raise TypeError(f"{name}: a range of real numbers cannot be tabulated")

    def next(self) -> bool:
        self._at = 0
        while self._digits:
            self._digits[-1][0] += 1
            if self._digits[-1][0] < self._digits[-1][1]:
                return True
            self._digits.pop()
        return False


def candidates(space: SearchSpace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(hash, parameters) of every candidate that computes something of its own, in an order of no meaning."""
    found: dict[str, dict[str, Any]] = {}
    odometer, more = Odometer(), True
    while more:
        candidate = space.candidate(odometer)
        assert candidate.experiment is not None, candidate.problem
        found.setdefault(candidate.experiment.hash, candidate.params)
        more = odometer.next()
    order = np.random.default_rng(0).permutation(len(found))
    items = list(found.items())
    return (items[i] for i in order)


def train(job: tuple[str, dict[str, Any], bool]) -> dict[str, Any]:
    """Train one candidate, looking at it where a scheduler may: its scores, and the seconds it took."""
    import tempfile

    from archsearch.experiment.run import ExperimentRun, score

    key, params, smoke = job
    experiment = read_space(SPACE).replay(params).experiment
    assert experiment is not None
    if smoke:
        experiment = experiment.with_training(**SMOKE)
    objectives = ("recall", "perplexity")
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder))
        rungs = []
        for share in SHARES:
            run.advance(round(share * run.steps) - run.step)
            metrics = run.glance()
            rungs.append([round(metrics[name], 5) for name in objectives])
        run.advance(run.steps)
        final = run.evaluate()
        test = score(run.model, experiment.with_evaluation(split="test"))
        return {
            "hash": key,
            "params": params,
            "rungs": rungs,
            "final": [round(final[name], 5) for name in objectives],
            "test": [round(test[name], 5) for name in objectives],
            "seconds": round(run.seconds, 2),
        }


def tabulate(out: Path, workers: int, seconds: float, smoke: bool) -> int:
    """Train what is not in the folder yet; 0 once every candidate is."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    space = read_space(SPACE)
    space.check_data()  # once here, not once in every worker
    points = {point["hash"]: point for point in read_points(out / POINTS)}
    wanted = list(candidates(space))[: 4 if smoke else None]
    jobs = [(key, params, smoke) for key, params in wanted if key not in points]
    print(f"{len(wanted)} candidates, {len(points)} in the table, {workers} workers", flush=True)
    pool = multiprocessing.get_context("spawn").Pool(workers, initializer=one_thread)
    with pool, (out / POINTS).open("a") as file:
        for point in pool.imap_unordered(train, jobs, chunksize=1):
            points[point["hash"]] = point
            file.write(json.dumps(point) + "\n")
            file.flush()
            passed = time.monotonic() - began
            print(f"{len(points)} of {len(wanted)} after {passed:.0f} s ({point['seconds']} s)", flush=True)
            if passed > seconds:
                pool.terminate()
                break
    keep(out, space, points, len(wanted))
    return 0 if len(points) == len(wanted) else 3


def keep(out: Path, space: SearchSpace, points: dict[str, dict[str, Any]], wanted: int) -> None:
    """The table as one compressed file."""
    rows = [points[key] for key in sorted(points)]
    tokens = space.samples[0].training.steps * space.samples[0].training.tokens_per_step
    table = {"space": space.hash, "shares": SHARES, "tokens": tokens, "candidates": wanted, "points": rows}
    text = json.dumps(table, separators=(",", ":")).encode()
    path = out / TABLE.name
    path.write_bytes(gzip.compress(text, mtime=0))
    print(f"{path}: {len(rows)} of {wanted} candidates, {path.stat().st_size / 1024:.0f} KiB", flush=True)


def read_points(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may have been torn by a kill."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("tabulate", help="train every candidate once")
    table.add_argument("--out", type=Path, required=True)
    table.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    table.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    table.add_argument("--smoke", action="store_true", help="four candidates, a few steps each")
    arguments = parser.parse_args()
    return tabulate(arguments.out, arguments.workers, arguments.seconds, arguments.smoke)


if __name__ == "__main__":
    # Set before torch is imported, by the workers too.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    raise SystemExit(main())
