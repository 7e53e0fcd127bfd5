"""What the parts of benchmarks/gpu.py share: the figures by name in a file, timing, and limits of time."""

from __future__ import annotations

import gc
import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BF16, FP32 = torch.bfloat16, torch.float32
BARS = {"bfloat16": 1e-2, "float32": 1e-4, "train": 1.0, "attention": 1 / 0.95, "parallel": 0.9}

CASE_SECONDS = 120.0
"""The longest that a case may take."""

TUNING_SECONDS = 300.0
"""The same where Triton kernels may time their configurations, as they do in the first call of a shape."""

ROUND_SECONDS = 12.0
"""After these, no further round of a timing is begun."""

READING_SECONDS, MOST_REPEATS = 0.02, 50
"""What a reading lasts at least, up to so many repeats: as in training, the host launches a step while the
GPU still works on the one before, and neither the first launch nor the wait at the end counts."""


class OutOfTime(Exception):
    """A case took longer than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` inside after so many seconds. Limits nest; a call into C ends first."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before, left = signal.signal(signal.SIGALRM, stop), signal.getitimer(signal.ITIMER_REAL)[0]
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, min(seconds, left) if left else seconds)
    try:
        yield
    finally:
        # The outer limit's time goes on.
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 0.1) if left else 0.0)


@dataclass
class Report:
    """Figures by name, kept in a file. `due`: when no new case is begun; a running one may take 20 s more."""

    path: Path
    due: float
    smoke: bool
    rounds: int
    rows: dict[str, Any] = field(default_factory=dict)

    def case(self, name: str, run: Callable[[], dict[str, Any]], limit: float = CASE_SECONDS) -> None:
        """Run a case that is not there yet, and keep what it gives."""
        left = self.due - time.monotonic()
        if name in self.rows or left < 0:
            return
        start = time.monotonic()
        try:
            with limited(min(limit, left + 20)):
                row = run()
        except OutOfTime as error:
            if left + 20 < limit:  # the run is over, which says nothing of the case: for another run
                print(name, "not finished", flush=True)
                return
            row = {"error": explained(error)}
        except Exception as error:  # a rival that does not run, a kernel that refuses: part of the result
            row = {"error": explained(error)}
        row["took"] = round(time.monotonic() - start, 1)
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(name, json.dumps(row), flush=True)
        tidy()


def explained(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def tidy() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(steps: Sequence[Callable[[], object]], rounds: int, warm: int = 2) -> list[list[float]]:
    """Seconds of each step by round.

    Steps take turns in an order drawn anew (by a fixed seed) every other round, and backwards in the round
    after it: a step that always followed the same other one would have the clock that this one leaves, which
    is lower after long products. Short steps are repeated within a reading.
    """
    for step in [*steps] * warm:
        step()
    repeats = [max(1, min(MOST_REPEATS, int(READING_SECONDS / reading(step, 1)))) for step in steps]
    taken: list[list[float]] = [[] for _ in steps]
    order, draw = list(range(len(steps))), random.Random(0)
    begun = time.monotonic()
    for i in range(rounds):
        if i and time.monotonic() - begun > ROUND_SECONDS:
            break
        if i % 2 == 0:
            draw.shuffle(order)
        else:
            order.reverse()
        for j in order:
            taken[j].append(reading(steps[j], repeats[j]))
    return taken


def reading(step: Callable[[], object], repeats: int) -> float:
    """Seconds of a step, of so many one after another."""
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise()
    return (time.perf_counter() - start) / repeats


def milliseconds(taken: list[float]) -> float:
    return round(1000 * median(taken), 3)


def ratio(own: list[float], other: list[float]) -> float:
    """The median over rounds of own / other."""
    return round(median(a / b for a, b in zip(own, other, strict=True)), 4)


def relative(found: Tensor, expected: Tensor) -> float:
    """The error's 2-norm over that of what is expected."""
    wide = expected.double().cpu()
    error = float((found.double().cpu() - wide).norm() / wide.norm().clamp(min=1e-12))
    return float("inf") if error != error else error


def autocast() -> Any:
    return torch.autocast(DEVICE, BF16)
