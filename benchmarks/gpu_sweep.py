"""Trials an hour of a sweep with several trials a GPU, against one a GPU.

Two sweeps of the quickstart's space, one after the other, whose trials have a share of a GPU and a core each:
proposed at random and trained in full (no trial is stopped early), so that both do the same work. The rate
is that of the trials that ended, from the start of the first to the end of the last; the steady rate leaves
out as many first ones as run at a time, which bear their workers' start.

    python benchmarks/gpu_sweep.py --out FOLDER [--shares 0.25 1] [--trials 80 30] [--seconds 250]

A sweep is interrupted after so many seconds; what ended by then counts. FOLDER gets both runs and
rates.json. --smoke: two tiny trials on a CPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from archsearch.spec.loading import to_yaml
from archsearch.study import Study

SPACE = Path(__file__).resolve().parents[1] / "search_spaces" / "quickstart.yaml"
STOPPING_SECONDS = 60
TINY = {"tokens": 4096, "context": 64, "tokens_per_step": 512}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 1.0])
    parser.add_argument("--trials", nargs="+", type=int, default=[80, 30])
    parser.add_argument("--seconds", type=float, default=250)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if len(given.shares) != len(given.trials):
        parser.error("as many --trials as --shares are needed")
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = [(0.0, 2)] if given.smoke else list(zip(given.shares, given.trials, strict=True))
    rates = [measured(given.out, share, trials, given.seconds, given.smoke) for share, trials in pairs]
    found: dict[str, Any] = {"sweeps": rates}
    slowest = rates[-1]["trials an hour"]
    if len(rates) > 1 and slowest:
        found["times as many"] = round(rates[0]["trials an hour"] / slowest, 2)
        if rates[0].get("steady") and rates[-1].get("steady"):
            found["times as many, steady"] = round(rates[0]["steady"] / rates[-1]["steady"], 2)
    (given.out / "rates.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def measured(out: Path, share: float, trials: int, limit: float, smoke: bool) -> dict[str, Any]:
    """One sweep, whose trials have `share` of a GPU each (none at 0)."""
    space, run = out / f"space_{share:g}.yaml", out / f"run_{share:g}"
    space.write_text(to_yaml(space_of(share, trials, smoke)))
    command = [sys.executable, "-m", "archsearch", "sweep", str(space), "--out", str(run), "--no-dashboard"]
    with subprocess.Popen(command) as sweep:
        try:
            sweep.wait(limit)
        except subprocess.TimeoutExpired:
            sweep.send_signal(signal.SIGINT)
            try:
                sweep.wait(STOPPING_SECONDS)
            except subprocess.TimeoutExpired:
                sweep.kill()
    study = Study.read(run)
    at_a_time = round(1 / share) if share else 1
    return {
        "gpu": share,
        **rate_of(study.complete, at_a_time),
        "failed": [t.cause for t in study.ended if t.state == "failed"],
    }


def space_of(share: float, trials: int, smoke: bool) -> dict[str, Any]:
    space: dict[str, Any] = YAML(typ="safe").load(SPACE.read_text())
    space["search"] = {
        "trials": trials,
        "sampler": "random",
        "scheduler": "none",
        "seed": 0,
        "storage": "none",
    }
    space["resources"] = {"cpu": 1, "gpu": share} if share else {"cpu": 1}
    if smoke:
        space["training"].update(TINY)
        space["evaluation"].update({"tokens": 512, "examples": 8})
    return space


def rate_of(done: Sequence[Any], at_a_time: int) -> dict[str, Any]:
    """Of the trials that ended with a result."""
    if not done:
        return {"trials": 0, "trials an hour": 0.0}
    ends = sorted(trial.ended or 0.0 for trial in done)
    span = ends[-1] - min(trial.started for trial in done)
    found: dict[str, Any] = {
        "trials": len(done),
        "span s": round(span, 1),
        "trials an hour": round(3600 * len(done) / span, 1),
        "seconds a trial": [round(trial.seconds or 0.0, 1) for trial in done],
    }
    if len(ends) > 2 * at_a_time:
        # From when as many had ended as run at a time: each of those had its worker's start in it.
        found["steady"] = round(3600 * (len(ends) - at_a_time) / (ends[-1] - ends[at_a_time - 1]), 1)
    return found


if __name__ == "__main__":
    main()
