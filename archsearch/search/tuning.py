"""The seam to Ray Tune: a searcher that hands out a sweep's trials, a callback that brings results back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from archsearch.search.daemons import check_scheduler
from archsearch.search.guard import read_verdict
from archsearch.search.place import Place
from archsearch.search.retries import SessionLost, WaitingTrials
from archsearch.search.sweep import Sweep
from archsearch.search.work import ERROR, one_line
from archsearch.search.worker import TrialWorker
from archsearch.study.log import StudyWriteError

_LOW_MEMORY = "running low on memory"
"""Ray's words for a worker that its memory monitor killed."""


def tune_trials(sweep: Sweep, place: Place, folder: Path, reporter: Any, stop: threading.Event) -> None:
    """Train the sweep's trials, as many at a time as `place` says, until it has none left or `stop` is set.

    folder: for Tune's own files, of which nothing is kept. Raises SessionLost where Ray itself is gone; the
    trials that ran are then the sweep's next ones. Raises StudyWriteError where a disk is full.
    """
    bridge = _Bridge(sweep, place, folder, reporter, stop)
    bundles = tune.PlacementGroupFactory([sweep.space.settings.resources.seat])
    try:
        tune.run(
            tune.with_resources(TrialWorker, bundles),
            search_alg=_Handout(bridge),
            num_samples=-1,
            reuse_actors=True,
            # Tune would spell out the configuration, beyond what a file name may hold.
            trial_dirname_creator=_folder_name,
            name="sweep",
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=[_Returns(bridge)],
            # Trials keep their own checkpoints; Tune's default is to ask for one at the end of each.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            raise_on_failed_trial=False,
            # Through Ray Client a `Tuner` would run in another process, with copies of the bridge.
            _remote=False,
        )
    except Exception:
        # Whatever it is called by now: Tune wraps what is raised while it handles a result.
        try:
            check_scheduler()
        except SessionLost:
            sweep.reopen([*bridge.running.values(), *bridge.later])
            raise
        raise
    if bridge.blocked is not None:
        raise bridge.blocked


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


class _Bridge:
    """What the searcher and the callback share. Tune pickles both; only the driver's copy is of use."""

    def __init__(self, sweep: Sweep, place: Place, folder: Path, reporter: Any, stop: threading.Event):
        self.sweep = sweep
        self.concurrency = place.concurrency
        self.away = place.away
        self.reporter = reporter
        self.stop = stop
        self.stop_file = folder / "stop" if self.away is None else self.away.stop
        self.running: dict[str, str] = {}
        self.later = WaitingTrials()
        self.blocked: StudyWriteError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def hand_out(self, tune_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while there is no room, or what to do next depends on trials
        that run; FINISHED when there is no more."""
        if self.ending:
            return Searcher.FINISHED
        trial = self.later.take_due()
        if trial is None and len(self.running) + len(self.later) >= self.concurrency:
            self.look()
            return None
        try:
            while trial is None:
                if self.ending or not self.sweep.has_work:
                    busy = self.running or self.later
                    return None if busy and not self.ending else Searcher.FINISHED
                trial = self.sweep.next()
                self.look()
        except StudyWriteError as error:
            self.blocked = error
            return Searcher.FINISHED
        self.running[tune_id] = trial
        return self._work(trial)

    @property
    def ending(self) -> bool:
        """No further trial is to begin, and those that run are to end soon."""
        return self.stop.is_set() or self.blocked is not None

    def _work(self, trial: str) -> dict[str, Any]:
        """What a worker is told of a trial."""
        resources = self.sweep.space.settings.resources
        limit, used = resources.time_limit, self.sweep.known[trial].seconds
        folder = self.sweep.folder(trial)
        told = {
            "run": str(self.sweep.out.resolve()),
            "folder": str(folder.resolve()),
            "stop": str(self.stop_file),
            "driver": os.getpid(),
            "threads": resources.cpu,
            "device": resources.device,
            "cwd": os.getcwd(),
            "goal": self.sweep.goal(trial),
            "seeds": self.sweep.space.search.seeds,
            "workers": resources.processes,
            "asks": resources.bundle,
            "concurrency": self.concurrency,
            "memory": resources.memory,
            "seconds": None if limit is None else max(0.0, limit - used),
        }
        return told if self.away is None else told | self.away.tells(trial, folder)

    def take_back(self, tune_id: str, outcome: dict[str, Any]) -> None:
        """Record what a trial came to; an interrupted one stays open for a later session."""
        trial = self.running.pop(tune_id, None)
        if trial is None or outcome["state"] == "interrupted":
            return
        try:
            self._record(trial, outcome)
        except StudyWriteError as error:
            self.blocked = self.blocked or error
        if self.away is not None:
            self.away.bring(trial, self.sweep.folder(trial))
        self.look()

    def _record(self, trial: str, outcome: dict[str, Any]) -> None:
        self.sweep.known[trial].node = outcome.get("node")
        if outcome["state"] == "blocked":
            raise StudyWriteError(f"{outcome['message']}; the same command continues once it can be")
        if outcome["state"] == "lost":
            pause = self.sweep.lose(trial, outcome["message"])
            if pause is not None and not self.ending:
                self.later.add(trial, pause)
        elif outcome["state"] == "rung":
            self.sweep.rung(trial, outcome["metrics"], outcome["seconds"], outcome["tokens"])
        elif outcome["state"] == "complete":
            self.sweep.complete(trial, outcome["metrics"], outcome["seconds"], outcome.get("spread"))
            self.sweep.write_front()
        else:
            self.sweep.fail(trial, outcome["cause"], outcome["seconds"])

    def look(self) -> None:
        """What has to happen often: see that Ray lives, pass a stop on to the workers, keep the display
        alive."""
        check_scheduler()
        if self.ending and not self.stop_file.exists():
            self.stop_file.touch()
        if self.away is not None:
            self.away.follow({trial: self.sweep.folder(trial) for trial in self.running.values()})
        if self.reporter is not None:
            self.reporter.update()


class _Handout(Searcher):
    def __init__(self, bridge: _Bridge):
        super().__init__()
        self.bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        return self.bridge.hand_out(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Results arrive through the callback, which also sees why an actor died."""

    def save(self, checkpoint_path: str) -> None:
        """The study's record is what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class _Returns(Callback):
    def __init__(self, bridge: _Bridge):
        self.bridge = bridge

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.bridge.look()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.bridge.take_back(trial.trial_id, json.loads(trial.last_result["outcome"]))
        # Tune keeps its trials to the end, and statistics of every number that each of them reported.
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        check_scheduler()  # the worker is not to blame for what took its session with it
        folder = Path(trial.config["folder"])
        text = _error_text(trial, trial.get_error())
        cause = read_verdict(Path(trial.config.get("verdicts") or folder))
        if cause is None and _LOW_MEMORY in text:
            message = "its node ran low on memory, and Ray killed the worker"
            cause = {"kind": "out of memory", "message": message}
        if cause is None:
            outcome: dict[str, Any] = {"state": "lost", "message": _why_lost(text)}
        else:
            outcome = {"state": "failed", "cause": cause, "seconds": None}
        with contextlib.suppress(OSError):
            (folder / ERROR).write_text(f"{text}\n")
        self.bridge.take_back(trial.trial_id, outcome)


_REASONS = (r"Worker exit detail: (.*?)\.\s", r"(The actor is dead because .*?)\.\s", r"(\w*Error: .*)")
"""Where Ray's page about an actor that died says why."""


def _why_lost(text: str) -> str:
    for reason in _REASONS:
        if (found := re.search(reason, text)) is not None:
            return one_line(found[1], 120)
    return one_line(text, 120)


def _error_text(trial: Trial, error: BaseException | None) -> str:
    """All that Tune knows of why a worker did not come back."""
    if error is not None:
        return str(error).strip() or type(error).__name__
    try:
        return Path(trial.error_file).read_text().strip() or "the worker's process ended"
    except (OSError, TypeError):
        return "the worker's process ended"
