"""The course of a sweep, apart from how trials are run: what to train next, what became of it, the record.

Everything a sweep knows it can read back from its record, so continuing one is replaying the record through
the same steps that wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archsearch.search.costs import is_cost
from archsearch.search.layout import draw
from archsearch.search.samplers import Proposer, finite
from archsearch.search.space import Candidate, SearchSpace, read_recorded_space
from archsearch.spec import SpecError, to_yaml
from archsearch.spec.cost_names import CostName
from archsearch.study import VERSION, Study, StudyError, StudyLog
from archsearch.study.follow import LineFollower, strict_objects
from archsearch.study.schema import FRONT, LOCK, RECORD, SPACE, SPEC, TRIALS

PATIENCE = 200
"""Proposals in a row without a candidate to train, after which the space counts as exhausted."""

SHOWN_CHANGES = 5

NON_FINITE = "non-finite metric"
BAD_CANDIDATE = ("non-finite loss", NON_FINITE, "out of memory")
"""Causes of failure that say something about the candidate; of others the sampler learns nothing."""


@dataclass
class Known:
    """A trial as far as a sweep needs it."""

    state: str
    candidate: Candidate
    values: dict[str, float] = field(default_factory=dict)


class Sweep:
    """One sweep over a space, recorded in the folder `out`, holding its lock until closed.

    trials: candidates to train in all; default: the space's.

    Raises StudyError where `out` belongs to something else: another process, another space, no run at all.
    """

    def __init__(self, space: SearchSpace, out: Path, trials: int | None = None, concurrency: int = 1):
        self.space = space
        self.out = out
        self.trials = trials or space.search.trials
        self.known: dict[str, Known] = {}
        self.exhausted = False
        self._identities: dict[str, str] = {}
        self._combinations: set[frozenset[tuple[str, Any]]] = set()
        self._proposer = Proposer(space)
        _check_folder(out)
        self.log = StudyLog(out)
        try:
            _check_same(space, out)
            header = self._replay()
            _write(out / SPACE, space.text)
            fresh = self._header(concurrency)
            if header is None or any(header.get(key) != value for key, value in fresh.items()):
                self.log.append(fresh)
        except BaseException:
            self.log.close()
            raise
        self._waiting = [trial for trial, known in self.known.items() if known.state == "running"]
        self.study = Study(out)

    def folder(self, trial: str) -> Path:
        return self.out / TRIALS / trial

    @property
    def begun(self) -> int:
        """Trials that were given to training, whatever became of them."""
        return sum(known.state in ("running", "complete", "failed") for known in self.known.values())

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or (self.begun < self.trials and not self._is_exhausted())

    def next(self) -> str | None:
        """Propose one candidate and record it: the trial to train, or None.

        None where the candidate is a duplicate or breaks a constraint: the next call may have more luck.
        """
        if self._waiting:
            trial = self._waiting.pop(0)
            self.log.trial(trial, "running", **_identity(self.known[trial].candidate))
            self._prepare(trial, self.known[trial].candidate)
            return trial
        assert self.has_work
        trial = f"{len(self.known):04d}"
        candidate = self._proposer.ask(trial)
        event = self._describe(trial, candidate)
        self._take(event, candidate)
        if candidate.experiment is not None:
            self._prepare(trial, candidate)
        self.log.append(event)
        return trial if event["state"] == "running" else None

    def complete(self, trial: str, metrics: Mapping[str, float], seconds: float) -> None:
        """The trial was trained and scored."""
        candidate = self.known[trial].candidate
        values: dict[str, float | None] = {}
        for name in self.space.settings.objectives:
            values[name] = candidate.costs(CostName.parse(name)) if is_cost(name) else metrics.get(name)
        event: dict[str, Any] = {"values": values, "metrics": dict(metrics), "seconds": seconds}
        if not finite(values.values()):
            broken = [name for name, value in values.items() if not finite([value])]
            cause = {"kind": NON_FINITE, "message": f"{', '.join(broken)} is not a finite number"}
            event = {"cause": cause, "seconds": seconds}
        self._end(trial, "failed" if "cause" in event else "complete", event)

    def fail(self, trial: str, cause: Mapping[str, Any], seconds: float | None = None) -> None:
        """The trial ended without scores. cause: kind, message, and the step where there was one."""
        self._end(trial, "failed", {"cause": dict(cause), "seconds": seconds})

    def write_front(self) -> int:
        """Make `front/` hold the experiments of the front's members and nothing else; how many they are."""
        self.study.refresh()
        members = {f"{trial.id}.yaml": self.folder(trial.id) / SPEC for trial in self.study.front()}
        folder = self.out / FRONT
        folder.mkdir(exist_ok=True)
        for stale in folder.glob("*.yaml"):
            if stale.name not in members:
                stale.unlink()
        for name, spec in members.items():
            if not (folder / name).exists():
                _write(folder / name, spec.read_text())
        return len(members)

    def counts(self) -> dict[str, int]:
        """Number of trials in each state that occurs."""
        found: dict[str, int] = {}
        for known in self.known.values():
            found[known.state] = found.get(known.state, 0) + 1
        return found

    def close(self) -> None:
        self.log.close()

    def _replay(self) -> dict[str, Any] | None:
        """Take every recorded event again; the last header, if there is one."""
        follower = LineFollower(self.out / RECORD)
        header = None
        for number, event in strict_objects(follower.path, follower.read()):
            if event.get("event") == "study":
                header = event
            if event.get("event") != "trial":
                continue
            trial = event["trial"]
            try:
                candidate = (
                    self.known[trial].candidate
                    if trial in self.known
                    else self._proposer.replay(trial, event.get("params", {}))
                )
            except ValueError as error:
                raise StudyError(f"{follower.path}:{number}: trial {trial}: {error}") from None
            self._take(event, candidate)
        return header

    def _take(self, event: Mapping[str, Any], candidate: Candidate) -> None:
        """Let a trial's event count, whether it happens now or was recorded before."""
        trial, state = event["trial"], event["state"]
        if trial not in self.known and "start_from" not in candidate.params:
            self._combinations.add(frozenset(candidate.params.items()))
        before = self.known.get(trial)
        self.known[trial] = Known(state, candidate, event.get("values") or {})
        values = [self.known[trial].values.get(name) for name in self.space.settings.objectives]
        if state == "running":
            if before is None:
                assert candidate.experiment is not None
                self._proposer.accept()
                self._identities.setdefault(candidate.experiment.hash, trial)
        elif state == "infeasible":
            self._proposer.reject(trial, event["constraints"])
        elif state == "failed" and event["cause"]["kind"] in BAD_CANDIDATE:
            self._proposer.reject(trial)
        elif finite(values):
            self._proposer.complete(trial, [value for value in values if value is not None])
        else:
            self._proposer.forget(trial)

    def _describe(self, trial: str, candidate: Candidate) -> dict[str, Any]:
        """The first event of a new candidate."""
        event: dict[str, Any] = {"event": "trial", "trial": trial, **_identity(candidate)}
        broken = {name: v for name, v in self.space.violations(candidate).items() if v > 0}
        if candidate.experiment is None:
            cause = {"kind": "invalid combination", "message": candidate.problem}
            return event | {"state": "infeasible", "constraints": broken, "cause": cause}
        experiment = candidate.experiment
        event |= {
            "arch_hash": experiment.arch.hash,
            "layout": draw(experiment.arch.nodes),
            "mixture": experiment.data.weights,
            "cost": self._costs(candidate),
        }
        if broken:
            return event | {"state": "infeasible", "constraints": broken}
        original = self._identities.get(experiment.hash)
        if original is None:
            return event | {"state": "running"}
        return event | {"state": "duplicate", "of": original, "values": self.known[original].values}

    def _costs(self, candidate: Candidate) -> dict[str, float]:
        """Costs at the longest scored length, and those that objectives and constraints name."""
        costs: dict[str, float] = dict(candidate.costs.summary())
        names = [constraint.name for constraint in self.space.settings.constraints]
        names += [CostName.parse(name) for name in self.space.settings.objectives if is_cost(name)]
        for name in names:
            try:
                costs[str(name)] = candidate.costs(name)
            except ValueError:
                continue  # beyond the learned positions; the constraint counts as broken
        return costs

    def _prepare(self, trial: str, candidate: Candidate) -> None:
        """The trial's folder, with the candidate as an experiment file."""
        assert candidate.experiment is not None
        folder = self.folder(trial)
        folder.mkdir(parents=True, exist_ok=True)
        name = {"name": f"{self.space.name}-{trial}"}
        values = candidate.experiment.dump()
        _write(folder / SPEC, to_yaml(values | name | {"arch": name | values["arch"] | name}))

    def _end(self, trial: str, state: str, fields: dict[str, Any]) -> None:
        candidate = self.known[trial].candidate
        event = self.log.trial(trial, state, **(_identity(candidate) | fields))
        self._take(event, candidate)

    def _header(self, concurrency: int) -> dict[str, Any]:
        settings = self.space.settings
        return {
            "event": "study",
            "version": VERSION,
            "name": self.space.name,
            "space_hash": self.space.hash,
            "objectives": {name: o.direction for name, o in settings.objectives.items()},
            "reference": settings.references,
            "trials": self.trials,
            "concurrency": concurrency,
            "seed": settings.search.seed,
            "sampler": self._proposer.kind,
            "sources": self.space.sources,
            "budget": self.space.budget,
        }

    def _is_exhausted(self) -> bool:
        size = self.space.size
        tried_all = size.continuous == 0 and len(self._combinations) >= size.discrete
        return tried_all or self._proposer.idle >= PATIENCE

    def note_exhaustion(self) -> None:
        """Say so where the space came to an end before the trials did."""
        if self.has_work or self.begun >= self.trials:
            return
        self.exhausted = True
        left = f"{self.begun} of {self.trials} trials"
        if self._proposer.idle >= PATIENCE:
            message = f"{PATIENCE} candidates in a row repeat others or break constraints: ending at {left}"
        else:
            message = f"the space holds no further candidate: ending at {left}"
        self.log.note("warning", message)


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out}: is a file; expected a folder for the run")
    if out.is_dir() and not (out / RECORD).exists():
        others = sorted(entry.name for entry in out.iterdir() if entry.name != LOCK)
        if others:
            raise StudyError(f"{out}: not a run folder: it holds {others[0]!r} but no {RECORD}")


def _check_same(space: SearchSpace, out: Path) -> None:
    """Refuse to continue a run with another space, saying what changed."""
    recorded = out / SPACE
    if not recorded.exists():
        return
    try:
        changes = space.changes_from(read_recorded_space(recorded))
    except SpecError as error:
        raise StudyError(f"{error} (the run's copy of its space)") from None
    if changes:
        shown = "; ".join(changes[:SHOWN_CHANGES])
        more = f"; and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
        raise StudyError(
            f"{out}: the search space has changed since this run began: {shown}{more}; "
            f"choose another folder, or continue with {recorded}"
        )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _identity(candidate: Candidate) -> dict[str, Any]:
    """What every line about a trial says, so that each can be read by itself. values: none yet."""
    found = None if candidate.experiment is None else candidate.experiment.hash
    return {"values": {}, "params": candidate.params, "hash": found}
