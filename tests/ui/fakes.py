"""Run folders with every kind of trial in them, written through the real log."""

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from archsearch.study import StudyLog

START = 1_760_000_000.0
SOURCES = ["reference", "code", "mqar", "facts"]
STEPS = 400

M = {"glyph": "M", "kind": "mamba2", "family": "ssm"}
A = {"glyph": "A", "kind": "attention", "family": "attention"}
W = {"glyph": "A", "kind": "attention", "family": "attention", "window": 64}
F = {"glyph": "-", "kind": "mlp", "family": "channel"}


def parallel(*branches: list[dict[str, Any]], merge: str = "mean") -> dict[str, Any]:
    return {"kind": "parallel", "branches": list(branches), "merge": merge}


LAYOUTS: list[list[dict[str, Any]]] = [
    [M, F, M, F, M, F, M, F],
    [A, F, A, F, A, F, A, F],
    [M, A, F, M, A, F, M, A, F],
    [M, M, M, A, F],
    [M, F, W, F, M, F, W, F],
    [parallel([M], [A], merge="cross_attention"), F, M, F, parallel([M], [A], merge="cross_attention"), F],
    [parallel([M], [A]), F] * 3,
    [parallel([M, F], [A]), M, F, W, F],
    [parallel([M], [parallel([A], [M, F], merge="gate")], merge="concat"), F, M, F],
    [M, parallel([M], [parallel([W], [parallel([M], [A])])], merge="subtract"), F],
]


def header(trials: int = 24, **changes: Any) -> dict[str, Any]:
    return {
        "event": "study",
        "version": 1,
        "name": "recall-vs-perplexity",
        "space_hash": "9f31c0de55aa",
        "objectives": {"recall": "maximize", "perplexity": "minimize"},
        "reference": {"recall": 0.0, "perplexity": 16.0},
        "trials": trials,
        "concurrency": 2,
        "seed": 0,
        "sampler": "tpe",
        "sources": SOURCES,
        "budget": {"tokens": 1_000_000},
        "time": START,
    } | changes


class FakeRun:
    """Writes a run event by event; `log` stays open, so the run reads as live until `close`."""

    def __init__(self, run_dir: Path, trials: int = 24, seed: int = 7, **changes: Any) -> None:
        self.run_dir = run_dir
        self.rng = random.Random(seed)
        self.log = StudyLog(run_dir)
        self.clock = START
        self.log.append(header(trials, **changes))
        self.log.append({"event": "session", "state": "started", "pid": 4242, "time": self.clock})

    def candidate(self, number: int) -> dict[str, Any]:
        layout = LAYOUTS[number % len(LAYOUTS)]
        shares = [self.rng.random() ** 2 + 0.02 for _ in SOURCES]
        mixture = {name: round(share / sum(shares), 4) for name, share in zip(SOURCES, shares, strict=True)}
        size = 60_000 + 17_000 * len(layout) + self.rng.randrange(40_000)
        return {
            "params": {
                "arch.layers.0.depth": len(layout),
                "training.lr": 10 ** self.rng.uniform(-3, -2),
                "arch.layers.0.mamba2.d_state": self.rng.choice([8, 16, 32]),
                **{f"data.mixture.{name}": share for name, share in mixture.items()},
            },
            "hash": f"{self.rng.getrandbits(48):012x}",
            "layout": layout,
            "mixture": mixture,
            "cost": {
                "params": size,
                "flops_per_token": size * 6,
                "state_bytes": 1024 * self.rng.randrange(4, 64),
            },
        }

    def begin(self, name: str, candidate: dict[str, Any]) -> None:
        self.log.append(
            {"event": "trial", "trial": name, "state": "running", "time": self.clock, **candidate}
        )

    def train(self, name: str, share: float, floor: float = 2.1) -> None:
        path = self.run_dir / "trials" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "spec.yaml").write_text("name: fake\n")
        last = int(STEPS * share)
        with path.open("a") as file:
            for step in range(10, last + 1, 10):
                loss = floor + 3.4 * math.exp(-step / 60) + self.rng.gauss(0, 0.03)
                file.write(
                    json.dumps(
                        {
                            "step": step,
                            "steps": STEPS,
                            "tokens": step * 4096,
                            "loss": loss,
                            "losses": {"code": loss * 0.9, "reference": loss * 1.1},
                            "lr": 0.003,
                            "seconds": step * 0.075,
                            "time": self.clock + step * 0.075,
                        }
                    )
                    + "\n"
                )

    def end(self, name: str, state: str, **fields: Any) -> None:
        self.log.append({"event": "trial", "trial": name, "state": state, "time": self.clock, **fields})

    def scores(self, candidate: dict[str, Any]) -> dict[str, float]:
        text = candidate["mixture"]["reference"] + candidate["mixture"]["code"]
        mixed = len({item.get("family", "parallel") for item in candidate["layout"]})
        recall = min(0.995, max(0.02, 0.15 * mixed + 0.75 * (1 - text) + self.rng.gauss(0, 0.09)))
        perplexity = 4.1 + 4.5 * (1 - text) ** 1.5 - 0.15 * mixed + abs(self.rng.gauss(0, 0.35))
        return {"recall": recall, "perplexity": perplexity}

    def finish(self, state: str = "finished") -> None:
        self.clock += 1.5
        self.log.append({"event": "session", "state": state, "pid": 4242, "time": self.clock})
        self.log.close()

    def close(self) -> None:
        self.log.close()


def run_trials(run: FakeRun, numbers: Iterable[int]) -> None:
    """Trials 5, 11 fail; 8, 17 are infeasible; 13 repeats 2; the others complete."""
    for number in numbers:
        name = f"{number:04d}"
        candidate = run.candidate(number)
        run.clock += 0.4
        if number in (8, 17):
            run.end(name, "infeasible", constraints={"params <= 150k": 0.157}, **candidate)
            continue
        if number == 13:
            run.end(name, "duplicate", of="0002", **candidate)
            continue
        run.begin(name, candidate)
        failed = {
            5: {"kind": "non-finite loss", "message": "loss became nan at learning rate 0.0093", "step": 120},
            11: {"kind": "out of memory", "message": "tried to allocate 2.1 GiB <script>alert(1)</script>"},
        }.get(number)
        run.train(name, 0.3 if failed else 1.0, floor=1.6 + 0.05 * (number % 7))
        seconds = run.rng.uniform(24, 34)
        run.clock += seconds / 2
        if failed:
            run.end(name, "failed", cause=failed, seconds=seconds / 3)
            continue
        values = run.scores(candidate)
        metrics = {**values, "recall/mqar@32": values["recall"], "bits_per_byte/code": 2.2}
        run.end(name, "complete", values=values, metrics=metrics, seconds=seconds)


def midway(run_dir: Path) -> FakeRun:
    """A live run: 18 of 24 trials ended in every way, two are training, notes were taken."""
    run = FakeRun(run_dir)
    run.log.append(
        {"event": "note", "level": "info", "message": "2 workers, 1 thread each", "time": run.clock}
    )
    run_trials(run, range(18))
    note = "trial 0011 ran out of memory; the sweep goes on"
    run.log.append({"event": "note", "level": "warning", "message": note, "time": run.clock})
    for name, share in (("0018", 0.65), ("0019", 0.2)):
        run.begin(name, run.candidate(int(name)))
        run.train(name, share, floor=1.5 + 0.7 * share)
    return run


def finished(run_dir: Path) -> Path:
    run = FakeRun(run_dir)
    run_trials(run, range(24))
    run.finish()
    return run_dir


def empty(run_dir: Path) -> Path:
    run = FakeRun(run_dir)
    run.finish("interrupted")
    return run_dir


MAKERS: dict[str, Callable[[Path], Any]] = {"midway": midway, "finished": finished, "empty": empty}
