"""The seam to Ray Tune: a searcher that hands out a sweep's trials, a callback that brings results back."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from archsearch.search.sweep import Sweep
from archsearch.search.work import ERROR, one_line
from archsearch.search.worker import TrialWorker


def tune_trials(sweep: Sweep, folder: Path, concurrency: int, reporter: Any, stop: threading.Event) -> None:
    """Train the sweep's trials, `concurrency` at a time, until it has none left or `stop` is set.

    folder: for Tune's own files, of which nothing is kept.
    """
    bridge = _Bridge(sweep, folder, concurrency, reporter, stop)
    tuner = tune.Tuner(
        tune.with_resources(TrialWorker, tune.PlacementGroupFactory([sweep.space.settings.resources.bundle])),
        tune_config=tune.TuneConfig(
            search_alg=_Handout(bridge),
            num_samples=-1,
            reuse_actors=True,
            # Tune would spell out the configuration, beyond what a file name may hold.
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=[_Returns(bridge)],
            # Trials keep their own checkpoints; Tune's default is to ask for one at the end of each.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


class _Bridge:
    """What the searcher and the callback share. Tune pickles both; only the driver's copy is of use."""

    def __init__(self, sweep: Sweep, folder: Path, concurrency: int, reporter: Any, stop: threading.Event):
        self.sweep = sweep
        self.concurrency = concurrency
        self.reporter = reporter
        self.stop = stop
        self.stop_file = folder / "stop"
        self.running: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def hand_out(self, tune_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration; None while there is no room, or what to do next depends on trials
        that run; FINISHED when there is no more."""
        if len(self.running) >= self.concurrency:
            return None
        trial = None
        while trial is None:
            if self.stop.is_set() or not self.sweep.has_work:
                return None if self.running and not self.stop.is_set() else Searcher.FINISHED
            trial = self.sweep.next()
            self.look()
        self.running[tune_id] = trial
        return {
            "run": str(self.sweep.out.resolve()),
            "folder": str(self.sweep.folder(trial).resolve()),
            "stop": str(self.stop_file),
            "driver": os.getpid(),
            "threads": self.sweep.space.settings.resources.cpu,
            "device": self.sweep.space.settings.resources.device,
            "cwd": os.getcwd(),
            "goal": self.sweep.goal(trial),
            "seeds": self.sweep.space.search.seeds,
        }

    def take_back(self, tune_id: str, outcome: dict[str, Any]) -> None:
        """Record what a trial came to; an interrupted one stays open for a later session."""
        trial = self.running.pop(tune_id, None)
        if trial is None or outcome["state"] == "interrupted":
            return
        if outcome["state"] == "rung":
            self.sweep.rung(trial, outcome["metrics"], outcome["seconds"], outcome["tokens"])
        elif outcome["state"] == "complete":
            self.sweep.complete(trial, outcome["metrics"], outcome["seconds"], outcome.get("spread"))
            self.sweep.write_front()
        else:
            self.sweep.fail(trial, outcome["cause"], outcome["seconds"])
        self.look()

    def look(self) -> None:
        """What has to happen often: pass a stop on to the workers, keep the display alive."""
        if self.stop.is_set() and not self.stop_file.exists():
            self.stop_file.touch()
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

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = trial.get_error()
        text = _error_text(trial, error)
        (Path(trial.config["folder"]) / ERROR).write_text(text + "\n")
        kind = "out of memory" if isinstance(error, OutOfMemoryError) else "worker died"
        cause = {"kind": kind, "message": one_line(text)}
        self.bridge.take_back(trial.trial_id, {"state": "failed", "cause": cause, "seconds": None})


def _error_text(trial: Trial, error: BaseException | None) -> str:
    """All that Tune knows of why a worker did not come back."""
    if error is not None:
        return str(error).strip() or type(error).__name__
    try:
        return Path(trial.error_file).read_text().strip() or "the worker's process ended"
    except (OSError, TypeError):
        return "the worker's process ended"
