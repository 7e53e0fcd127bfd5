"""What the dashboard costs: the share of a core that it takes beside 1,000 trials, by the terminal's size.

The record is written as a sweep writes it: candidates of the space, with made-up scores. Then two trials run
for a while, the dashboard is called fifty times a second, as the driver does, and the CPU time inside its
calls counts. `busy`: the curves grow five times a second and a trial ends every second, so that there is news
for each of the four frames that a second may have. `quiet`: nothing happens but the clock.

    python benchmarks/redraw.py [--trials 1000] [--seconds 10] [SPACE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from archsearch.search.space import SearchSpace, read_space
from archsearch.search.sweep import Sweep
from archsearch.study import Study
from archsearch.study.schema import METRICS
from archsearch.ui.blocks import Block
from archsearch.ui.live import LiveDashboard

SPACE = Path(__file__).parent.parent / "search_spaces/hybrids.yaml"
SIZES = ((80, 24), (120, 40), (200, 60))
CURVE_POINTS = 100
CALL_SECONDS = 0.02
CURVES_EVERY, TRIAL_EVERY = 10, 50
"""Calls."""


class Making:
    """A sweep of two trials at a time that end with made-up scores."""

    def __init__(self, space: SearchSpace, out: Path, trials: int):
        self.rng = np.random.default_rng(0)
        self.sweep = Sweep(space, out, 2 * trials + 1000, concurrency=2)
        self.running: dict[str, int] = {}

    def begin(self) -> None:
        """Have two trials running."""
        while len(self.running) < 2:
            if (trial := self.sweep.next()) is not None:
                self.running[trial] = 0

    def train(self) -> None:
        """Each running trial tells of a few more steps."""
        for trial, step in self.running.items():
            self.running[trial] = step + CURVE_POINTS // 10
            points = [self._point(step) for step in range(step + 1, self.running[trial] + 1)]
            with open(self.sweep.folder(trial) / METRICS, "a") as file:
                file.writelines(json.dumps(point) + "\n" for point in points)

    def end(self) -> None:
        """The oldest running trial is complete."""
        trial = next(iter(self.running))
        del self.running[trial]
        recall = float(self.rng.beta(2, 3))
        perplexity = 4 + 4 * recall * float(self.rng.uniform(0.5, 1.5))
        metrics = {"recall": recall, "perplexity": perplexity}
        for domain, context in itertools.product(("reference", "code"), (256, 1024)):
            metrics[f"perplexity/{domain}@{context}"] = perplexity
        self.sweep.complete(trial, metrics, float(self.rng.uniform(50, 70)))

    def _point(self, step: int) -> dict[str, object]:
        loss = 2 + 3.4 * float(np.exp(-step / 20)) + float(self.rng.normal(0, 0.03))
        losses = dict.fromkeys(self.sweep.space.sources, loss)
        counts = {"step": step, "steps": CURVE_POINTS, "tokens": 2048 * step}
        return counts | {"loss": loss, "losses": losses, "lr": 0.003}


class Counting(LiveDashboard):
    """Counts its frames."""

    frames = 0

    def _frame(self) -> Block:
        self.frames += 1
        return super()._frame()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", type=Path, nargs="?", default=SPACE)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        making = Making(drawn_at_random(options.space), Path(folder) / "run", options.trials)
        for _ in range(options.trials):
            making.begin()
            making.end()
        making.begin()
        making.train()
        print(f"{options.space.name}, {options.trials} complete trials, {len(making.sweep.known)} in all")
        print("| terminal | news | frames a second | ms a frame | share of a core |\n|---|---|---|---|---|")
        for (width, height), news in itertools.product(SIZES, (True, False)):
            print(row(making, width, height, news, options.seconds), flush=True)
        making.sweep.close()


def drawn_at_random(path: Path) -> SearchSpace:
    """The space, its candidates drawn at random: how they came about does not matter here."""
    space = read_space(path)
    search = space.search.model_copy(update={"sampler": "random", "start_from": []})
    settings = space.settings.model_copy(update={"search": search})
    return SearchSpace(space.source, space.text, settings, space.sections)


def row(making: Making, width: int, height: int, news: bool, seconds: float) -> str:
    """Call a dashboard for a while."""
    with open(os.devnull, "w") as terminal:
        console = Console(
            file=terminal, force_terminal=True, color_system="truecolor", width=width, height=height
        )
        with Counting(Study.read(making.sweep.out), console) as dashboard:
            dashboard.frames, spent, passed = 0, 0.0, 0.0
            began = time.perf_counter()
            for call in itertools.count(1):
                if news and call % CURVES_EVERY == 0:
                    making.train()
                if news and call % TRIAL_EVERY == 0:
                    making.end()
                    making.begin()
                before = time.process_time()
                dashboard.update()
                spent += time.process_time() - before
                time.sleep(CALL_SECONDS)
                if (passed := time.perf_counter() - began) >= seconds:
                    break
            frames = dashboard.frames
    kind = "busy" if news else "quiet"
    each = 1e3 * spent / max(1, frames)
    return f"| {width} x {height} | {kind} | {frames / passed:.1f} | {each:.1f} | {spent / passed:.1%} |"


if __name__ == "__main__":
    main()
