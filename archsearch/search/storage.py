"""The study as an Optuna storage, for `optuna-dashboard` and everything else that opens one.

The record stays the truth: a thread follows it and repeats every trial that has ended, each in a single
transaction. A storage that was left behind, or deleted, is caught up the next time the run is worked on, and
one that cannot be written costs a note in the record and nothing else. Trials that have not ended are not in
it, so that no kill leaves one running there forever.

Optuna's states: complete is COMPLETE; stopped, infeasible and duplicate are PRUNED; failed is FAIL. The
trial's own state and id, hashes, layout, costs, mixture and scores are user attributes.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.search.choosers import Label, ReplayChooser
from archsearch.search.holes import Filled
from archsearch.search.layout import drawn_text
from archsearch.search.settings import NO_STORAGE, OWN_STORAGE
from archsearch.search.space import START, SearchSpace
from archsearch.study import StudyError, StudyLog
from archsearch.study.follow import LineFollower, line_id, strict_objects
from archsearch.study.schema import RECORD

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DATABASE = "optuna.db"
"""In the run's folder, unless the space names another storage."""

PERIOD_SECONDS = 5.0
"""Also before the first look: the start of a sweep has enough to do."""
RETRY_SECONDS = 30.0
PATIENCE_SECONDS = 20.0
"""How long the end of a sweep waits for the storage."""

_LOCK_SECONDS = 20
_STATES = {
    "complete": "COMPLETE",
    "stopped": "PRUNED",
    "infeasible": "PRUNED",
    "duplicate": "PRUNED",
    "failed": "FAIL",
}
_GROUPS = ("cost", "mixture", "spread")
"""Fields whose entries are attributes of their own, which the dashboard can sort by."""


def storage_url(space: SearchSpace, run: Path) -> str | None:
    """Where the study is repeated; None for nowhere."""
    asked = space.search.storage
    if asked == NO_STORAGE:
        return None
    return f"sqlite:///{run.resolve() / DATABASE}" if asked == OWN_STORAGE else asked


@contextmanager
def mirrored(space: SearchSpace, run: Path, log: StudyLog) -> Iterator[None]:
    """Keep the run's storage up with its record, from a thread of its own."""
    url = storage_url(space, run)
    if url is None:
        yield
        return
    follower = _Following(lambda: StorageMirror(space, run, url), url, log)
    thread = threading.Thread(target=follower.run, name="optuna storage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        follower.ending.set()
        thread.join(PATIENCE_SECONDS)


class _Following:
    """The thread's work: catch up every so often, and once more at the end."""

    def __init__(self, open_mirror: Callable[[], StorageMirror], url: str, log: StudyLog):
        self.open_mirror = open_mirror
        self.url = url
        self.log = log
        self.ending = threading.Event()
        self._told = False

    def run(self) -> None:
        mirror: StorageMirror | None = None
        over = False
        pause = PERIOD_SECONDS
        while not over:
            over = self.ending.wait(pause)
            pause = PERIOD_SECONDS
            try:
                mirror = mirror or self.open_mirror()
                mirror.catch_up()
            except Exception as error:
                # Whatever is wrong with it: the sweep does not depend on the storage.
                mirror, pause = None, RETRY_SECONDS
                self._tell(error)
        if mirror is not None:
            mirror.close()

    def _tell(self, error: Exception) -> None:
        if self._told:
            return
        self._told = True
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        with contextlib.suppress(OSError, StudyError):
            self.log.note(
                "warning",
                f"the Optuna storage {_without_password(self.url)} cannot be written ({reason}); "
                "the sweep goes on, and the storage is caught up the next time it can be",
            )


class StorageMirror:
    """Repeats a run's ended trials in the storage at `url`. Opening it reads what is there already.

    Raises whatever Optuna and the database raise.
    """

    def __init__(self, space: SearchSpace, run: Path, url: str):
        self.space = space
        self._record = LineFollower(run / RECORD)
        self._pending: dict[str, dict[str, Any]] = {}
        self._url = url
        self._study: optuna.Study | None = None
        self._written: set[str] = set()

    def catch_up(self) -> int:
        """Write the trials that ended since the last call; how many they were."""
        lines = self._record.read()
        if not lines:
            return 0
        if self._study is None:
            self._study = _open_study(self.space, self._url, line_id(lines[0][1]))
            self._written = {
                trial.user_attrs["trial"]
                for trial in self._study.get_trials(deepcopy=False)
                if "trial" in trial.user_attrs
            }
        count = 0
        for _, event in strict_objects(self._record.path, lines):
            if event.get("event") == "trial":
                count += self._take(event)
        return count

    def close(self) -> None:
        """Let go of the database."""
        if self._study is not None:
            self._study._storage.remove_session()

    def _take(self, event: Mapping[str, Any]) -> bool:
        name = event["trial"]
        known = self._pending.setdefault(name, {"started": event["time"], "rungs": []})
        known.update({key: value for key, value in event.items() if value is not None})
        if "rung" in event:
            known["rungs"].append(event["rung"])
        if event["state"] not in _STATES:
            return False
        del self._pending[name]
        if name in self._written:
            return False
        assert self._study is not None
        try:
            self._study.add_trial(frozen_trial(self.space, known))
        except ValueError:
            # Optuna allows a parameter one set of choices a study; its value is kept as an attribute then.
            self._study.add_trial(frozen_trial(self.space, known, with_params=False))
        self._written.add(name)
        return True


def frozen_trial(space: SearchSpace, known: Mapping[str, Any], with_params: bool = True) -> FrozenTrial:
    """A trial's events, merged, as Optuna's. known: their fields, `started` and `rungs`."""
    from optuna.trial import TrialState, create_trial

    objectives = list(space.settings.objectives)
    distributions = _distributions(space, known.get("params", {})) if with_params else {}
    attributes = _attributes(known)
    if derived := {name: v for name, v in known.get("params", {}).items() if name not in distributions}:
        attributes["params"] = derived
    state = TrialState[_STATES[known["state"]]]
    found = known.get("values") or {}
    values = [found[name] for name in objectives if found.get(name) is not None]
    has_values = len(values) == len(objectives) and state != TrialState.FAIL
    steps = {}
    if len(objectives) == 1:  # Optuna has intermediate values of single objectives only
        steps = {rung["tokens"]: rung["values"][objectives[0]] for rung in known["rungs"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = create_trial(
            state=state,
            values=values if has_values else None,
            params={name: known["params"][name] for name in distributions},
            distributions=distributions,
            user_attrs=attributes,
            system_attrs=_constraints(space, known),
            intermediate_values=steps,
        )
    trial.datetime_start = datetime.datetime.fromtimestamp(known["started"])
    trial.datetime_complete = datetime.datetime.fromtimestamp(known["time"])
    return trial


def _attributes(known: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: known[name] for name in ("trial", "state", "hash", "arch_hash", "of") if name in known}
    if known.get("layout"):
        found["layout"] = drawn_text(known["layout"])
    for group in _GROUPS:
        found |= {f"{group}.{name}": value for name, value in (known.get(group) or {}).items()}
    for name in ("metrics", "cause", "seconds", "rungs"):
        if known.get(name):
            found[name] = known[name]
    return found


def _constraints(space: SearchSpace, known: Mapping[str, Any]) -> dict[str, Any]:
    """How far each constraint is broken, 0 where it holds: in Optuna 5's form, and as the list of older ones,
    which the dashboard reads."""
    broken = known.get("constraints") or {}
    names = dict.fromkeys([*(constraint.text for constraint in space.settings.constraints), *broken])
    amounts = {name: float(broken.get(name, 0.0)) for name in names}
    if not amounts:
        return {}
    return {"constraints": list(amounts.values())} | {f"constraints:{n}": v for n, v in amounts.items()}


class _NotingChooser(ReplayChooser):
    """Replays a candidate and notes what each of its parameters was chosen from."""

    def __init__(self, params: Mapping[str, Any]):
        super().__init__(params)
        self.found: dict[str, BaseDistribution] = {}

    def categorical(self, name: str, choices: Any) -> Label:
        from optuna.distributions import CategoricalDistribution

        self.found[name] = CategoricalDistribution(tuple(choices))
        return super().categorical(name, choices)

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        from optuna.distributions import IntDistribution

        self.found[name] = IntDistribution(low, high, step=step)
        return super().integer(name, low, high, step)

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        from optuna.distributions import FloatDistribution

        self.found[name] = FloatDistribution(low, high, log=log)
        return super().real(name, low, high, log)


def _distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """What each parameter was chosen from; those of a given layout's `match` are left out."""
    from optuna.distributions import CategoricalDistribution

    chooser = _NotingChooser(params)
    for key, node in space.sections.items():
        if key != "arch" or START not in params:
            node.fill(chooser, key, (key,), Filled(value={}))
    if START in params:
        chooser.found[START] = CategoricalDistribution(tuple(space.search.start_from))
    return chooser.found


def _open_study(space: SearchSpace, url: str, run_id: str) -> optuna.Study:
    import optuna

    optuna.logging.disable_default_handler()
    logging.getLogger("optuna").setLevel(logging.CRITICAL)
    wait = {"connect_args": {"timeout": _LOCK_SECONDS}} if url.startswith("sqlite") else {}
    objectives = space.settings.objectives
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(url, engine_kwargs=wait)
        # Several runs may share a storage: each is a study of its own.
        study = optuna.create_study(
            storage=storage,
            study_name=f"{space.name}-{run_id}",
            directions=[objective.direction for objective in objectives.values()],
            load_if_exists=True,
        )
        if study.metric_names != list(objectives):
            study.set_metric_names(list(objectives))
            study.set_user_attr("space_hash", space.hash)
    return study


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else url
