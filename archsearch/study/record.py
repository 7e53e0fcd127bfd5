"""The read model of a run: its record as it stands, followed as it grows. Readers take no lock."""

import itertools
import os
import time
from collections import deque
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from archsearch.study.follow import LineFollower, lenient_objects, strict_objects
from archsearch.study.fronts import non_dominated, order_front
from archsearch.study.log import is_live
from archsearch.study.schema import METRICS, RECORD, TRIALS, StudyError, check_event
from archsearch.study.trial import Header, Session, Trial
from archsearch.study.volume import VolumeHistory

_ENDED = ("complete", "stopped", "failed", "infeasible", "duplicate")
_TIMELINE = 1000

LAST_CURVES = 4
"""Of the followed trials that do not run any more, how many keep their curve: the last ones to end."""

_HEADER_FIELDS = tuple(Header.__dataclass_fields__)
_TRIAL_FIELDS = (
    "params",
    "hash",
    "layout",
    "mixture",
    "cost",
    "values",
    "metrics",
    "spread",
    "constraints",
    "of",
    "retries",
    "seconds",
)


class Study:
    """A study as its record tells it.

    `trials` are in order of first appearance; `timeline` holds the last events as they were read; `now` is
    the time this view was taken, which stands still once nobody is writing the run; `revision` grows with
    every event.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self._record = LineFollower(self.run_dir / RECORD)
        self._metrics: dict[str, LineFollower] = {}
        self.header = Header(name=self.run_dir.resolve().name)
        self.trials: dict[str, Trial] = {}
        self.sessions: list[Session] = []
        self.notes: list[dict[str, Any]] = []
        self.timeline: deque[dict[str, Any]] = deque(maxlen=_TIMELINE)
        self.live = False
        self.now = 0.0
        self.revision = 0
        self._last_time = 0.0
        self._volumes = VolumeHistory()
        self._history: list[float] | None = None
        self._front: dict[str, None] | None = None
        self._complete: list[Trial] | None = None
        self._ended: list[Trial] | None = None
        self._best: dict[str, Trial | None] = {}
        self._scores: dict[str, list[float]] = {}
        self._followed: set[str] = set()
        self._read_curves = False

    @classmethod
    def read(cls, run_dir: str | os.PathLike[str]) -> "Study":
        """Read the run in `run_dir`.

        Raises:
            StudyError: the folder is no run, a line of its record is damaged, or a newer version wrote it.
        """
        study = cls(run_dir)
        if not study.run_dir.is_dir():
            raise StudyError(f"{study.run_dir}: no such folder")
        if not (study.run_dir / RECORD).is_file():
            raise StudyError(f"{study.run_dir}: not a run folder: it has no {RECORD}")
        study.refresh()
        return study

    def refresh(self, curves: bool = True) -> list[dict[str, Any]]:
        """Read what was appended since the last call, the running trials' curves included; return the events.

        Of the curves that were read so, only the running trials' and `LAST_CURVES` others are kept.

        Raises:
            StudyError: as in `read`.
        """
        lines = self._record.read()
        if self._record.restarted:
            self._forget()
        fresh = []
        for number, event in strict_objects(self._record.path, lines):
            try:
                self._take(event)
            except StudyError as error:
                raise StudyError(f"{self._record.path}:{number}: {error}") from None
            fresh.append(event)
        self.live = is_live(self.run_dir)
        self.now = time.time() if self.live else self._last_time
        if curves:
            self._follow_running()
        return fresh

    def read_curves(self) -> None:
        """Read every trial's training curve, to be kept; `refresh` reads only those of running trials."""
        self._read_curves = True
        for trial in self.trials.values():
            self._follow(trial)

    @property
    def objectives(self) -> list[str]:
        """The objectives' names, in the header's order."""
        return list(self.header.objectives)

    @property
    def status(self) -> str:
        """waiting (no header yet, or for trials that run elsewhere), running, finished, or interrupted (asked
        to stop, or killed)."""
        if self.header.objectives and not self.sessions and not self.live:
            trained = sum(trial.state in ("complete", "stopped", "failed") for trial in self.trials.values())
            return "finished" if trained >= self.header.trials else "waiting"
        last = self.sessions[-1].state if self.sessions else "started"
        if last != "started":
            return last
        if self.live:
            return "running" if self.header.objectives else "waiting"
        return "interrupted" if self.header.objectives else "waiting"

    @property
    def complete(self) -> list[Trial]:
        """Trials with a finite value for every objective. A duplicate counts as its original: once."""
        if self._complete is None:
            self._complete = [
                trial for trial in self.trials.values() if trial.state == "complete" and self._score(trial)
            ]
        return list(self._complete)

    @property
    def reference(self) -> dict[str, float]:
        """The hypervolume's reference point; see `assumed_reference` for entries that nobody agreed on."""
        return {name: self._reference_entry(name) for name in self.objectives} if self.complete else {}

    @property
    def assumed_reference(self) -> list[str]:
        """Objectives whose reference is not in the header: the worst complete value seen stands in."""
        return [name for name in self.objectives if not _is_number(self.header.reference.get(name))]

    @property
    def lines(self) -> int:
        """Lines of the record read so far."""
        return self._record.lines

    def counts(self) -> dict[str, int]:
        """Number of trials in each state that occurs."""
        found: dict[str, int] = {}
        for trial in self.trials.values():
            found[trial.state] = found.get(trial.state, 0) + 1
        return found

    @property
    def total(self) -> int:
        """Trials planned, or begun where those are more."""
        return max(self.header.trials, len(self.trials))

    @property
    def ended(self) -> list[Trial]:
        """Trials that reached an end of any kind, in the order they did."""
        if self._ended is None:
            self._ended = sorted(
                (trial for trial in self.trials.values() if trial.state in _ENDED),
                key=lambda trial: trial.ended or 0.0,
            )
        return list(self._ended)

    def front(self) -> list[Trial]:
        """The non-dominated complete trials, from best to worst in the first objective."""
        return [self.trials[name] for name in self._front_ids()]

    def on_front(self, trial: Trial) -> bool:
        """Whether the trial is one of `front`."""
        return trial.id in self._front_ids()

    def best(self, objective: str) -> Trial | None:
        """The complete trial with the best value of `objective`; None before there is one.

        Raises:
            StudyError: the study has no such objective.
        """
        if objective not in self.header.objectives:
            raise StudyError(
                f"{objective}: not an objective of this study; expected one of {', '.join(self.objectives)}"
            )
        if objective not in self._best:
            sign = -1.0 if self.header.objectives[objective] == "maximize" else 1.0
            self._best[objective] = min(
                self.complete, key=lambda trial: sign * (trial.values[objective] or 0.0), default=None
            )
        return self._best[objective]

    def hypervolume(self) -> float:
        """Volume between the front and the reference point, in the objectives' units; 0 before a trial."""
        history = self.hypervolume_history()
        return history[-1] if history else 0.0

    def hypervolume_history(self) -> list[float]:
        """The hypervolume after each complete trial, in the order they ended, against today's reference."""
        if self._history is None:
            complete = sorted(self.complete, key=lambda trial: trial.ended or 0.0)
            points = [self._score(trial) for trial in complete]
            reference = list(self.reference.values())
            self._history = self._volumes.after(points, reference, self.header.directions)
        return self._history

    @property
    def elapsed(self) -> float:
        """Seconds that sessions worked on the study, pauses between them left out."""
        total = 0.0
        for session in self.sessions:
            end = session.ended
            if end is None:
                end = self.now if self.live and session is self.sessions[-1] else session.last
            total += max(0.0, end - session.started)
        return total

    @property
    def eta(self) -> float | None:
        """Seconds of work left, from the mean work of ended trials; None while nothing is known."""
        if self.status == "finished":
            return 0.0
        running = [trial for trial in self.trials.values() if trial.state == "running"]
        worked = [trial.seconds for trial in self.ended if trial.seconds and trial.state != "duplicate"]
        if not worked:
            worked = [
                (self.now - trial.started) / trial.progress for trial in running if trial.progress > 0.02
            ]
        if not worked:
            return None
        mean_work = sum(worked) / len(worked)
        trained = len(worked) / max(1, len(self.ended)) if self.ended else 1.0
        waiting = max(0, self.header.trials - len(self.trials)) * mean_work * min(1.0, trained)
        left = [mean_work * (1.0 - trial.progress) for trial in running]
        spread = (waiting + sum(left)) / max(1, self.header.concurrency)
        return max(spread, max(left, default=0.0))

    def _forget(self) -> None:
        self.header = Header(name=self.run_dir.resolve().name)
        for kept in (self.trials, self.sessions, self.notes, self.timeline, self._metrics, self._followed):
            kept.clear()
        self._last_time = 0.0
        self.revision += 1
        self._stale()

    def _stale(self) -> None:
        """Anything may have changed."""
        self._scores.clear()
        self._stale_front()
        self._ended = None

    def _stale_front(self) -> None:
        self._history = None
        self._front = None
        self._complete = None
        self._best.clear()

    def _take(self, event: dict[str, Any]) -> None:
        check_event(event)
        moment = event.get("time")
        moment = float(moment) if _is_number(moment) else self._last_time
        self._last_time = max(self._last_time, moment)
        kind = event["event"]
        if kind == "session" and event["state"] == "started":
            self.sessions.append(Session(started=moment, pid=event.get("pid"), last=moment))
        elif kind == "session":
            self._close_session(event["state"], moment)
        elif kind == "study":
            self.header = Header(
                **{name: event[name] for name in _HEADER_FIELDS if event.get(name) is not None}
            )
            self._stale()
        elif kind == "trial":
            self._take_trial(event, moment)
        elif kind == "note":
            self.notes.append(event)
        if self.sessions and self.sessions[-1].ended is None:
            self.sessions[-1].last = moment
        self.timeline.append(event)
        self.revision += 1

    def _close_session(self, state: str, moment: float) -> None:
        if self.sessions:
            self.sessions[-1].state, self.sessions[-1].ended = state, moment

    def _take_trial(self, event: dict[str, Any], moment: float) -> None:
        trial = self.trials.setdefault(event["trial"], Trial(event["trial"], started=moment))
        if "complete" in (trial.state, event["state"]):
            self._scores.pop(trial.id, None)
            self._stale_front()
        self._ended = None
        trial.state = event["state"]
        for name in _TRIAL_FIELDS:
            if event.get(name) is not None:
                setattr(trial, name, event[name])
        if isinstance(event.get("rung"), dict):
            trial.rungs.append(event["rung"])
        if trial.state in ("running", "paused"):
            started = trial.started if event.get("rung") else moment
            trial.started, trial.ended, trial.cause = started, None, None
            return
        trial.ended = moment
        cause = event.get("cause")
        trial.cause = (
            cause if isinstance(cause, dict) or cause is None else {"kind": str(cause), "message": ""}
        )
        if trial.state == "duplicate" and trial.of in self.trials and not trial.values:
            trial.values = dict(self.trials[trial.of].values)

    def _follow_running(self) -> None:
        """Read on the curves of running trials, and let go of those that nobody looks at any more."""
        for trial in self.trials.values():
            if trial.state == "running":
                self._follow(trial)
        if self._read_curves:
            return
        over = [self.trials[name] for name in self._metrics if self.trials[name].state != "running"]
        self._followed.update(trial.id for trial in over if len(trial.curve) > 1)
        last = [trial for trial in self.ended if trial.id in self._followed][-LAST_CURVES:]
        for trial in last:
            if trial.id not in self._metrics:
                self._follow(trial)
        kept = {trial.id for trial in last}
        for trial in over:
            if trial.id not in kept:
                trial.curve.clear()
                del self._metrics[trial.id]

    def _follow(self, trial: Trial) -> None:
        follower = self._metrics.setdefault(
            trial.id, LineFollower(self.run_dir / TRIALS / trial.id / METRICS)
        )
        lines = follower.read()
        if follower.restarted:
            trial.curve.clear()
        trial.extend_curve(lenient_objects(lines))

    def _front_ids(self) -> dict[str, None]:
        """In the front's order."""
        if self._front is None:
            complete = self.complete
            directions = self.header.directions
            scores = [self._score(trial) for trial in complete]
            if not scores:
                self._front = {}
                return self._front
            members = list(itertools.compress(range(len(complete)), non_dominated(scores, directions)))
            order = order_front([scores[index] for index in members], directions)
            self._front = {complete[members[index]].id: None for index in order}
        return self._front

    def _score(self, trial: Trial) -> list[float]:
        """A complete trial's objectives in order; empty where one is missing."""
        found = self._scores.get(trial.id)
        if found is None:
            found = self._scores[trial.id] = trial.scores(self.objectives) or []
        return found

    def _reference_entry(self, name: str) -> float:
        given = self.header.reference.get(name)
        if _is_number(given):
            return float(given)
        seen = [trial.values[name] or 0.0 for trial in self.complete]
        return min(seen) if self.header.objectives[name] == "maximize" else max(seen)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
