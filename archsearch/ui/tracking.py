"""Ended trials as runs of Weights & Biases or of MLflow: parameters, curves, scores, what became of them.

A bystander of the study, as the dashboard is: it follows the record, live or after the fact. (Ray's own
callbacks see Tune's trials, of which each session and each rung begins new ones.) A trial is one run for
good: MLflow is asked which trials it has, for Weights & Biases a list in the run's folder says so.
Where runs go is what those tools' own settings say, such as WANDB_MODE or MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from archsearch.study import Study, Trial
from archsearch.study.follow import record_id
from archsearch.ui.tensorboard import scalars

PERIOD_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
"""How long the end of a sweep waits for the last trials to be logged."""
LOGGED = "wandb-logged.txt"
"""In the run's folder: the trials that Weights & Biases was given, a line each."""

_TRAINED = ("complete", "stopped", "failed")
_MLFLOW_BATCH = 1000


class Tracker(Protocol):
    """Where trials are logged."""

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that were not logged yet."""
        ...

    def log(self, trial: Trial) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is none, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; expected one of: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'archsearch[track]', or leave it out")


def track(run: Path, names: Sequence[str]) -> dict[str, int]:
    """Log the run's ended trials that were not logged before; how many, by tracker."""
    check_trackers(names)
    study = Study.read(run)
    return {name: _catch_up(study, TRACKERS[name](study)) for name in names}


@contextmanager
def tracking(run: Path, names: Sequence[str]) -> Iterator[None]:
    """Log trials as they end, from a thread of its own. What goes wrong costs a line on stderr at the end,
    and `track` makes up for it."""
    check_trackers(names)
    if not names:
        yield
        return
    ending = threading.Event()
    problems: dict[str, str] = {}

    def follow() -> None:
        while not ending.wait(PERIOD_SECONDS):
            _try_all(run, names, problems)
        _try_all(run, names, problems)

    thread = threading.Thread(target=follow, name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive():
            problems |= dict.fromkeys(names, f"no answer within {PATIENCE_SECONDS:g} seconds")
        for name, problem in problems.items():
            print(
                f"{name}: {problem}; `archsearch report {run} --track {name}` logs the rest", file=sys.stderr
            )


def _try_all(run: Path, names: Sequence[str], problems: dict[str, str]) -> None:
    for name in names:
        try:
            track(run, [name])
            problems.pop(name, None)
        except Exception as error:
            # Whatever is wrong over there: the sweep does not depend on it.
            problems[name] = " ".join(str(error).split())[:200] or type(error).__name__


def _catch_up(study: Study, tracker: Tracker) -> int:
    ended = [trial for trial in study.trials.values() if trial.state in _TRAINED]
    try:
        missing = tracker.missing(ended)
        if missing:
            study.read_curves()
        for trial in missing:
            tracker.log(trial)
    finally:
        tracker.close()
    return len(missing)


def _about(trial: Trial) -> dict[str, Any]:
    """What a trial is and became, besides its numbers."""
    found = {"trial": trial.id, "state": trial.state, "hash": trial.hash, "seconds": trial.seconds}
    found |= {f"mixture.{name}": share for name, share in trial.mixture.items()}
    found |= {f"cost.{name}": amount for name, amount in trial.cost.items()}
    if trial.cause:
        found["cause"] = ": ".join(str(trial.cause[key]) for key in ("kind", "message") if key in trial.cause)
    return {name: value for name, value in found.items() if value is not None}


def _by_step(trial: Trial) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for tag, value, step, _ in scalars(trial):
        found.setdefault(step, {})[tag] = value
    return found


class WandbTracker:
    """A Weights & Biases run a trial, in a project of the study's name; its id tells study and trial."""

    def __init__(self, study: Study):
        self.study = study
        self.own_id = record_id(study.run_dir)
        self._list = study.run_dir / LOGGED
        self._used = False

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        logged = set(self._list.read_text().split()) if self._list.exists() else set()
        return [trial for trial in trials if trial.id not in logged]

    def log(self, trial: Trial) -> None:
        import wandb

        self._used = True
        run = wandb.init(
            project=_plain(self.study.header.name, r"[^\w\-. ]"),
            group=self.own_id,
            id=f"{self.own_id}-{trial.id}",
            name=trial.id,
            tags=[trial.state],
            config=trial.params | _about(trial),
            dir=str(self.study.run_dir),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        for step, values in _by_step(trial).items():
            run.log(values, step=step)
        run.summary.update({name: value for name, value in trial.values.items() if value is not None})
        run.finish(exit_code=int(trial.state == "failed"))
        with self._list.open("a") as file:
            file.write(f"{trial.id}\n")

    def close(self) -> None:
        if self._used:
            import wandb

            wandb.teardown()


class MlflowTracker:
    """An MLflow run a trial, in an experiment of the study's name and id."""

    def __init__(self, study: Study):
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.client: Any = MlflowClient()
        name = f"{study.header.name}-{record_id(study.run_dir)}"
        found = self.client.get_experiment_by_name(name)
        self.experiment = self.client.create_experiment(name) if found is None else found.experiment_id

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        logged = set()
        token = None
        while token != "":
            page = self.client.search_runs([self.experiment], max_results=_MLFLOW_BATCH, page_token=token)
            for run in page:
                if run.info.status == "RUNNING":
                    self.client.delete_run(run.info.run_id)  # half written when a process was killed
                else:
                    logged.add(run.data.tags.get("trial"))
            token = page.token or ""
        return [trial for trial in trials if trial.id not in logged]

    def log(self, trial: Trial) -> None:
        from mlflow.entities import Metric, Param

        about = {_mlflow_name(name): str(value) for name, value in _about(trial).items()}
        begun = self.client.create_run(
            self.experiment, start_time=_millis(trial.started), tags=about, run_name=trial.id
        )
        own = begun.info.run_id
        params = [Param(_mlflow_name(name), str(value)) for name, value in trial.params.items()]
        metrics = [
            Metric(_mlflow_name(tag), value, _millis(moment or trial.started), step)
            for tag, value, step, moment in scalars(trial)
        ]
        for start in range(0, max(len(metrics), 1), _MLFLOW_BATCH):
            self.client.log_batch(own, metrics=metrics[start : start + _MLFLOW_BATCH])
        for start in range(0, len(params), 100):
            self.client.log_batch(own, params=params[start : start + 100])
        status = "FAILED" if trial.state == "failed" else "FINISHED"
        self.client.set_terminated(own, status, _millis(trial.ended or trial.started))

    def close(self) -> None:
        """Nothing is held open."""


TRACKERS: Mapping[str, Callable[[Study], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _mlflow_name(name: str) -> str:
    return _plain(name.replace("$", ""), r"[^\w\-. :/]")


def _plain(name: str, others: str) -> str:
    return re.sub(others, "_", name)


def _millis(moment: float) -> int:
    return int(moment * 1000)
