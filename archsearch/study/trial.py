"""A trial, a session and the header, as the record tells them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Point = dict[str, Any]
"""One line of a trial's metrics: `step`, `loss`, ... as in `schema.MetricsLine`."""


@dataclass
class Header:
    """What a study searches for. A record that has no header yet reads as an empty one."""

    name: str = ""
    version: int = 1
    space_hash: str = ""
    objectives: dict[str, str] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    trials: int = 0
    concurrency: int = 1
    seed: int | None = None
    sampler: str = ""
    scheduler: str = "none"
    seeds: int = 1
    sources: list[str] = field(default_factory=list)
    budget: dict[str, float] = field(default_factory=dict)
    time: float = 0.0

    @property
    def directions(self) -> list[str]:
        """Each objective's direction, in the objectives' order."""
        return list(self.objectives.values())


@dataclass
class Session:
    """One process's work on the study; `ended` is None where no closing line was written."""

    started: float
    pid: int | None = None
    state: str = "started"
    ended: float | None = None
    last: float = 0.0


@dataclass(eq=False)
class Trial:
    """One candidate. `state` is the last one recorded, and every field the last value recorded for it.

    `cost` holds counts and bytes, `seconds` the trial's own work, `progress` runs from 0 to 1, `curve` is the
    training curve read so far, in steps. `rungs` are what it scored on the way (`schema.Rung`), `spread` the
    standard deviations of its values over seeds, `retries` how often its worker was lost. `started` and
    `ended` are seconds since the epoch.
    """

    id: str
    state: str = "running"
    params: dict[str, Any] = field(default_factory=dict)
    hash: str = ""
    layout: list[dict[str, Any]] = field(default_factory=list)
    mixture: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    values: dict[str, float | None] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    spread: dict[str, float | None] = field(default_factory=dict)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    cause: dict[str, Any] | None = None
    constraints: dict[str, float] = field(default_factory=dict)
    of: str | None = None
    retries: int = 0
    seconds: float | None = None
    started: float = 0.0
    ended: float | None = None
    curve: list[Point] = field(default_factory=list)

    @property
    def progress(self) -> float:
        """Share of the training steps done, 0 to 1; 1 for a trial that is complete."""
        if self.state in ("complete", "duplicate"):
            return 1.0
        passed = self.rungs[-1]["share"] if self.rungs else 0.0
        if not self.curve or not self.curve[-1].get("steps"):
            return passed
        last = self.curve[-1]
        return min(1.0, max(passed, last["step"] / last["steps"]))

    @property
    def loss(self) -> float | None:
        """Last finite training loss, in nats a token."""
        for point in reversed(self.curve):
            loss = point.get("loss")
            if isinstance(loss, int | float) and math.isfinite(loss):
                return float(loss)
        return None

    def scores(self, objectives: Iterable[str]) -> list[float] | None:
        """The objectives' values in order, or None where one is missing or not finite."""
        found = [self.values.get(name) for name in objectives]
        if any(not isinstance(value, int | float) or not math.isfinite(value) for value in found):
            return None
        return [float(value) for value in found if value is not None]

    def extend_curve(self, points: Iterable[Point]) -> None:
        """Append training points. Steps repeated after a resume replace the earlier telling."""
        for point in points:
            step = point.get("step")
            if not isinstance(step, int):
                continue
            while self.curve and self.curve[-1]["step"] >= step:
                self.curve.pop()
            self.curve.append(point)
