"""A sweep whose trials run elsewhere: ask for a candidate, train it wherever that is, tell what it scored.

The record, the samplers and the lock are a sweep's own. A trial that was asked for is open until it is told
about; a sweep over the same run would train it itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from archsearch.experiment import load_experiment
from archsearch.search.costs import CandidateCosts, is_cost, objective_values
from archsearch.search.folder import write_front
from archsearch.search.known import not_finite
from archsearch.search.space import SearchSpace, read_recorded_space
from archsearch.search.storage import mirrored
from archsearch.search.sweep import Sweep
from archsearch.study import Study, StudyError, StudyLog, Trial
from archsearch.study.schema import RECORD, SPACE, SPEC, TRIALS, StudyBusy

PATIENCE_SECONDS = 10.0
"""How long others that ask or tell may hold the run's lock."""

RANGES = {"recall": (0.0, 1.0), "perplexity": (1.0, math.inf), "nll": (0.0, math.inf)}
"""Scores that cannot be beyond these; by the name before a `/`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A candidate to train. spec: its experiment file."""

    trial: str
    spec: Path


def ask(space: SearchSpace, out: Path, trials: int | None = None) -> Asked | None:
    """The next candidate of the study in `out`, which is begun where there is none; None when there is none.

    trials: candidates in all; default: the space's. Raises StudyError where `out` is another's, or being
    worked on, and ValueError for a space with rungs: trials elsewhere are told about once, at their end.
    """
    if space.search.scheduler not in ("auto", "none"):
        raise ValueError("ask: a space with halving is searched by sweep; expected scheduler: none")
    sweep = _patiently(lambda: Sweep(space, out, trials, rungs=False))
    try:
        sweep.leave_open()
        while sweep.has_work:
            trial = sweep.next()
            if trial is not None:
                return Asked(trial, sweep.folder(trial) / SPEC)
        sweep.note_exhaustion()
        return None
    finally:
        sweep.close()


def tell(out: Path, trial: str, metrics: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """Record what a trial that was asked for scored; the recorded event.

    metrics: every objective that is no cost, and whatever else is to be kept. One that is no finite number
    makes the trial a failed one. Raises StudyError where the run or the trial is not open, ValueError where
    an objective is missing or is no number.
    """
    _check_seconds(seconds)
    with _Open(out, trial) as run:
        missing = [name for name in run.study.objectives if not is_cost(name) and name not in metrics]
        if missing:
            raise ValueError(f"tell: missing {', '.join(missing)}; expected a number for each objective")
        for name, value in metrics.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"tell: {name}: expected a number, found {value!r}")
            low, high = RANGES.get(name.partition("/")[0], (-math.inf, math.inf))
            if value is not None and (value < low or value > high):
                raise ValueError(f"tell: {name}: expected {low:g} to {high:g}, found {value:g}")
        costs = CandidateCosts(load_experiment(out / TRIALS / trial / SPEC))
        values = objective_values(run.study.objectives, costs, metrics)
        if (failed := not_finite(values, seconds)) is not None:
            return run.end("failed", failed)
        return run.end("complete", {"values": values, "metrics": dict(metrics), "seconds": seconds})


def tell_failed(
    out: Path, trial: str, cause: Mapping[str, Any], seconds: float | None = None
) -> dict[str, Any]:
    """Record that a trial that was asked for came to nothing. cause: kind and message. Raises as `tell`."""
    if not cause.get("kind"):
        raise ValueError("tell: expected what the trial failed of, such as 'out of memory'")
    _check_seconds(seconds)
    with _Open(out, trial) as run:
        return run.end("failed", {"cause": dict(cause), "seconds": seconds})


def _check_seconds(seconds: float | None) -> None:
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"tell: seconds: expected a number of at least 0, found {seconds:g}")


def _patiently(begin: Callable[[], T]) -> T:
    """`begin()`, again while somebody else holds the run's lock, as people do who ask and tell at once."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return begin()
        except StudyBusy:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


class _Open:
    """An open trial of a run, with the run's lock held."""

    def __init__(self, out: Path, trial: str):
        if not (out / RECORD).exists():
            raise StudyError(f"{out}: not a run folder: it has no {RECORD}")
        self.out = out
        self.name = trial
        self.log = _patiently(lambda: StudyLog(out))
        self.study = Study(out)

    def __enter__(self) -> _Open:
        try:
            self.study.refresh()
            self.trial = self._open_trial()
        except BaseException:
            self.log.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def end(self, state: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Record the trial's end, and everything that follows from it."""
        known = {"params": self.trial.params, "hash": self.trial.hash}
        with mirrored(read_recorded_space(self.out / SPACE), self.out, self.log):
            event = self.log.trial(self.name, state, **({"values": {}} | known | dict(fields)))
        self.study.refresh()
        write_front(self.study)
        return event

    def _open_trial(self) -> Trial:
        found = self.study.trials.get(self.name)
        if found is None:
            asked = [trial.id for trial in self.study.trials.values() if trial.state == "running"]
            raise StudyError(f"{self.out}: no trial {self.name!r}; open are: {', '.join(asked) or 'none'}")
        if found.state != "running":
            raise StudyError(f"{self.out}: trial {self.name} has ended already: {found.state}")
        return found
