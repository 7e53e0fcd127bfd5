"""What the driver costs: a sweep of trials that do almost nothing, timed as a whole.

Each trial takes one optimiser step on a one-layer model (or `--steps` of them, a point of its curve each) and
is scored on a handful of tokens. Its own work is the time it reports: training and scoring. All the rest of
the sweep's wall-clock time counts as overhead: starting and stopping Ray, importing torch in the workers,
building models and data, proposing, recording, and drawing the dashboard, on a terminal of 120 x 40 cells
that nobody reads.

CPU time is that of the driver and all of its threads; on a machine that is shared it tells more than the
clock. The driver's memory is read twice a second; its growth is the slope of a least-squares line through
what was read after the first quarter of the trials.

    python benchmarks/sweep_overhead.py [--trials 200] [--concurrent 2] [--shown dashboard|plain|nothing]
    python benchmarks/sweep_overhead.py --trials 2000 --steps 100    # memory, with curves as real trials have
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from bisect import bisect
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from archsearch.search.driver import run_sweep
from archsearch.search.space import load_space
from archsearch.study import Study
from archsearch.ui.live import Reporter, open_reporter

SPACE = """
name: overhead
arch:
  tokenizer: bytes
  d_model: 16
  layers: [{{mlp: {{hidden: {{$choice: [16, 32]}}}}}}]
data: {{mixture: {{reference: 0.5, mqar: 0.5}}}}
training: {{tokens: {tokens}, context: 32, tokens_per_step: 256, lr: {{$log: [0.001, 0.01]}}}}
evaluation: {{tokens: 256, examples: 8}}
search: {{trials: {trials}, scheduler: none}}
resources: {{concurrent: {concurrent}}}
"""

SETTLED = 0.25
"""Share of the trials before the driver's memory is looked at."""

PERIOD_SECONDS = 0.5


class Used(NamedTuple):
    """What the driver's process used. memory: (time, resident bytes) pairs."""

    cpu: float
    memory: list[tuple[float, int]]


class Meter:
    """Passes calls on to a reporter, and reads the process's memory meanwhile."""

    def __init__(self, reporter: Reporter | None):
        self.reporter = reporter
        self.memory: list[tuple[float, int]] = []

    def update(self) -> None:
        if self.reporter is not None:
            self.reporter.update()
        if not self.memory or time.time() - self.memory[-1][0] >= PERIOD_SECONDS:
            self.memory.append((time.time(), resident_bytes()))

    def close(self) -> None:
        if self.reporter is not None:
            self.reporter.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--shown", choices=("dashboard", "plain", "nothing"), default="dashboard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        space, run = Path(folder) / "space.yaml", Path(folder) / "run"
        filled = {"trials": options.trials, "tokens": 256 * options.steps, "concurrent": options.concurrent}
        space.write_text(SPACE.format(**filled))
        began = time.perf_counter()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            used = pool.submit(sweep, space, run, options.shown).result()
        wall = time.perf_counter() - began
        study = Study.read(run)
    ended = sorted(trial.ended or 0.0 for trial in study.complete)
    number = len(ended)
    own = sum(trial.seconds or 0.0 for trial in study.complete) / options.concurrent
    first = min(trial.started for trial in study.complete) - study.sessions[0].started
    print(f"trials      {number}, {options.concurrent} at a time; shown: {options.shown}")
    print(f"wall clock  {wall:.1f} s, of which {first:.1f} s before the first trial was handed out")
    print(f"own work    {own:.1f} s")
    print(f"overhead    {(wall - own) / number:.3f} s a trial")
    print(f"driver CPU  {used.cpu:.1f} s, {used.cpu / number:.3f} s a trial")
    for start in range(0, number - 1, max(1, number // 4)):
        part = ended[start : start + max(1, number // 4) + 1]
        print(f"  trials {start:>4} on: {(part[-1] - part[0]) / (len(part) - 1):.3f} s a trial")
    points = [(bisect(ended, moment), amount / 1024) for moment, amount in used.memory]
    print(f"memory      {points[0][1] / 1024:.0f} MiB at first, {points[-1][1] / 1024:.0f} MiB at the end")
    print(f"growth      {slope(points, SETTLED * number):.0f} KiB a trial")


def sweep(space: Path, run: Path, shown: str) -> Used:
    """Run the sweep in this process."""
    meters = []

    @contextlib.contextmanager
    def metered(folder: Path) -> Iterator[Meter]:
        with open(os.devnull, "w") as terminal, contextlib.ExitStack() as stack:
            reporter = None
            if shown != "nothing":
                console = Console(
                    file=terminal, force_terminal=True, color_system="truecolor", width=120, height=40
                )
                reporter = open_reporter(Study.read(folder), console, plain=shown == "plain")
                stack.enter_context(reporter)
            meters.append(Meter(reporter))
            yield meters[0]

    run_sweep(load_space(space), run, open_reporter=metered)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Used(usage.ru_utime + usage.ru_stime, meters[0].memory)


def resident_bytes() -> int:
    """Memory of this process that is its own: resident, and not shared with others."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * resource.getpagesize()


def slope(points: list[tuple[int, float]], after: float) -> float:
    """Of the least-squares line through the points beyond `after`; not a number where they are few."""
    x, y = np.array([point for point in points if point[0] >= after]).reshape(-1, 2).T
    return float(np.polyfit(x, y, 1)[0]) if len(set(x.tolist())) > 2 else float("nan")


if __name__ == "__main__":
    main()
