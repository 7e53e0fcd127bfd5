"""The course of a sweep, apart from how trials are run: what to train next, what became of it, the record.

Everything a sweep knows it can read back from its record, so continuing one is replaying the record through
the same steps that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from archsearch.search.costs import is_cost, objective_values
from archsearch.search.folder import check_folder, check_same, write_front, write_whole, writing
from archsearch.search.halving import Halving
from archsearch.search.known import BAD_CANDIDATE, Known, identity, not_finite
from archsearch.search.layout import draw
from archsearch.search.retries import BACKOFF_SECONDS
from archsearch.search.samplers import finite
from archsearch.search.space import Candidate, SearchSpace
from archsearch.spec import to_yaml
from archsearch.spec.cost_names import CostName
from archsearch.study import VERSION, Study, StudyError, StudyLog
from archsearch.study.follow import LineFollower, strict_objects
from archsearch.study.schema import CHECKPOINT, RECORD, SPACE, SPEC, TRIALS

PATIENCE = 200
"""Proposals in a row without a candidate to train, after which the space counts as exhausted."""


class Sweep:
    """One sweep over a space, recorded in the folder `out`, holding its lock until closed.

    trials: candidates to train in all; default: the space's. rungs: whether trials come to the space's rungs,
    if it has some, or are heard of only at their end. begun: those that were given to training, whatever
    became of them.

    Raises StudyError where `out` belongs to something else: another process, another space, no run at all.
    """

    def __init__(
        self,
        space: SearchSpace,
        out: Path,
        trials: int | None = None,
        concurrency: int = 1,
        rungs: bool = True,
    ):
        self.space = space
        self.out = out
        self.trials = trials or space.search.trials
        self.known: dict[str, Known] = {}
        self.begun = 0
        self.exhausted = False
        self._identities: dict[str, str] = {}
        self._combinations: set[frozenset[tuple[str, Any]]] = set()
        self._proposer = space.proposer()
        self._halving = None
        if rungs and space.search.halving is not None:
            directions = {name: o.direction for name, o in space.settings.objectives.items()}
            self._halving = Halving(space.search.halving, directions)
        check_folder(out)
        self.log = StudyLog(out)
        try:
            check_same(space, out)
            header = self._replay()
            write_whole(out / SPACE, space.text)
            fresh = self._header(concurrency)
            if header is None or any(header.get(key) != value for key, value in fresh.items()):
                self.log.append(fresh)
        except BaseException:
            self.log.close()
            raise
        self._waiting = [trial for trial, known in self.known.items() if known.state == "running"]
        self._continuing: list[str] = []
        self.study = Study(out)

    def folder(self, trial: str) -> Path:
        return self.out / TRIALS / trial

    @property
    def ended(self) -> int:
        """Trials that came to an end of any kind."""
        return sum(known.state not in ("running", "paused") for known in self.known.values())

    @property
    def has_work(self) -> bool:
        if self._waiting or self._continuing or self._promotable() is not None:
            return True
        return self.begun < self.trials and not self._is_exhausted()

    def goal(self, trial: str) -> float:
        """How far the trial is to be trained now: the share of its steps at the next rung, or all."""
        shares = self._halving.shares if self._halving is not None else []
        return [*shares, 1.0][self.known[trial].rungs]

    def next(self) -> str | None:
        """The trial to train now, up to its `goal`: one that goes on, or a new candidate; or None.

        None where the candidate is a duplicate or breaks a constraint: the next call may have more luck.
        """
        if self._continuing:
            return self._continuing.pop(0)
        promoted = self._promotable()
        if self._waiting or promoted is not None:
            trial = self._waiting.pop(0) if promoted is None or self._waiting else promoted
            event = self.log.trial(trial, "running", **identity(self.known[trial].candidate))
            self._take(event, self.known[trial].candidate)
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

    def leave_open(self) -> None:
        """Trials that were begun are somebody else's to end: `next` proposes new ones only."""
        self._waiting.clear()

    def complete(
        self,
        trial: str,
        metrics: Mapping[str, float],
        seconds: float,
        spread: Mapping[str, float] | None = None,
    ) -> None:
        """The trial was trained and scored. spread: standard deviations of the metrics over its seeds."""
        values = self._values(trial, metrics)
        if (event := not_finite(values, seconds)) is not None:
            self._end(trial, "failed", event)
            return
        event = {"values": values, "metrics": dict(metrics), "seconds": seconds}
        if spread is not None:
            event["spread"] = {name: spread[name] for name in values if name in spread}
        self._end(trial, "complete", event)

    def rung(self, trial: str, metrics: Mapping[str, float], seconds: float, tokens: int) -> None:
        """The trial was trained to its next rung and scored there: it goes on, waits, or ends."""
        assert self._halving is not None
        known, level = self.known[trial], self.known[trial].rungs
        values = self._values(trial, metrics)
        if (event := not_finite(values, seconds)) is not None:
            self._end(trial, "failed", event)
            return
        share = self._halving.shares[level]
        event = {"rung": {"level": level, "share": share, "tokens": tokens, "values": values}}
        decision = self._halving.decide(
            trial, level, [value for value in values.values() if value is not None]
        )
        if decision == "stop":
            self._end(trial, "stopped", event | {"values": values, "seconds": seconds})
            self._drop_checkpoints(trial)
            return
        self._end(trial, "running" if decision == "continue" else "paused", event | {"seconds": seconds})
        if known.state == "running":
            self._continuing.append(trial)

    def settle(self) -> None:
        """No trial goes on any more: those that wait at a rung have come to their end."""
        if self.has_work or "running" in self.counts():
            return
        for trial, known in self.known.items():
            if known.state == "paused":
                self._end(trial, "stopped", {"values": known.values})
                self._drop_checkpoints(trial)

    def fail(self, trial: str, cause: Mapping[str, Any], seconds: float | None = None) -> None:
        """The trial ended without scores. cause: kind, message, and the step where there was one."""
        self._end(trial, "failed", {"cause": dict(cause), "seconds": seconds})

    def lose(self, trial: str, message: str) -> float | None:
        """The trial's worker is gone, for a reason that need not come again: seconds until it is to be tried
        again from its last checkpoint, or None where it was tried often enough and has failed."""
        retries = self.known[trial].retries
        if retries == len(BACKOFF_SECONDS):
            self.fail(trial, {"kind": "worker died", "message": f"{retries + 1} times; at last: {message}"})
            return None
        pause = BACKOFF_SECONDS[retries]
        self.log.note(
            "warning",
            f"trial {trial}: its worker was lost ({message}); retry {retries + 1} of {len(BACKOFF_SECONDS)} "
            f"in {pause:.0f} s, from its last checkpoint",
        )
        self._end(trial, "running", {"retries": retries + 1})
        return pause

    def reopen(self, trials: Iterable[str]) -> None:
        """Nobody works on these trials any more: they are the next ones."""
        self._waiting += trials

    def write_front(self) -> int:
        """Make `front/` hold the experiments of the front's members and nothing else; how many they are."""
        self.study.refresh(curves=False)
        return write_front(self.study)

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
        rung = event.get("rung")
        if trial not in self.known and "start_from" not in candidate.params:
            self._combinations.add(frozenset(candidate.params.items()))
        before = self.known.get(trial)
        known = self.known.setdefault(trial, Known(state, candidate))
        known.state, known.values = state, event.get("values") or (rung or {}).get("values") or {}
        known.seconds = event.get("seconds") or known.seconds
        known.retries = event.get("retries", known.retries)
        if rung is not None and self._halving is not None:
            known.rungs = rung["level"] + 1
            self._halving.record(trial, rung["level"], list(rung["values"].values()))
        if before is None:
            self.begun += state not in ("infeasible", "duplicate")
        if before is None and state == "running":
            assert candidate.experiment is not None
            self._proposer.accept()
            self._identities.setdefault(candidate.experiment.hash, trial)
        elif state == "running" and rung is None and self._halving is not None and known.rungs:
            self._halving.promote(trial, known.rungs - 1)
        if state not in ("running", "paused"):
            known.candidate = Candidate(candidate.params, None)  # a graph of many small objects
            self._tell(trial, event)

    def _tell(self, trial: str, event: Mapping[str, Any]) -> None:
        """Let the sampler learn what became of a trial that ended."""
        known = self.known[trial]
        told = self.known[event["of"]] if known.state == "duplicate" else known
        values = [known.values.get(name) for name in self.space.settings.objectives]
        if known.state == "infeasible":
            self._proposer.reject(trial, event["constraints"])
        elif known.state == "failed" and event["cause"]["kind"] in BAD_CANDIDATE:
            self._proposer.reject(trial)
        elif not finite(values):
            self._proposer.forget(trial)
        elif told.state == "stopped":
            assert self._halving is not None
            share = self._halving.shares[told.rungs - 1]
            self._proposer.stop(trial, [value for value in values if value is not None], share)
        else:
            self._proposer.complete(trial, [value for value in values if value is not None])

    def _describe(self, trial: str, candidate: Candidate) -> dict[str, Any]:
        """The first event of a new candidate."""
        event: dict[str, Any] = {"event": "trial", "trial": trial, **identity(candidate)}
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
        ended = self.known[original].state in ("complete", "stopped")
        values = self.known[original].values if ended else {}
        return event | {"state": "duplicate", "of": original, "values": values}

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
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        name = {"name": f"{self.space.name}-{trial}"}
        values = candidate.experiment.dump()
        write_whole(folder / SPEC, to_yaml(values | name | {"arch": name | values["arch"] | name}))

    def _values(self, trial: str, metrics: Mapping[str, float]) -> dict[str, float | None]:
        """The objectives of a trial with these scores."""
        costs = self.known[trial].candidate.costs
        return objective_values(self.space.settings.objectives, costs, metrics)

    def _promotable(self) -> str | None:
        """A trial that waits at a rung and may go on."""
        if self._halving is None:
            return None
        none_comes = self.begun >= self.trials or self._is_exhausted()
        found = self._halving.promotable(last=none_comes and "running" not in self.counts())
        return None if found is None else found[0]

    def _drop_checkpoints(self, trial: str) -> None:
        """A stopped trial is not continued: what it would need for that is a waste of the disk."""
        for checkpoint in self.folder(trial).rglob(CHECKPOINT):
            checkpoint.unlink(missing_ok=True)

    def _end(self, trial: str, state: str, fields: dict[str, Any]) -> None:
        candidate, node = self.known[trial].candidate, self.known[trial].node
        where = {} if node is None else {"node": node}
        event = self.log.trial(trial, state, **(identity(candidate) | fields | where))
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
            "scheduler": "none" if self._halving is None else f"halving ({self._halving.spec.type})",
            "seeds": settings.search.seeds,
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
