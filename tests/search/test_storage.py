"""The Optuna storage agrees with the record, is caught up from it, and stops nothing when it breaks."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from archsearch.search.driver import run_sweep
from archsearch.search.layout import drawn_text
from archsearch.search.space import SearchSpace, load_space
from archsearch.search.storage import StorageMirror, mirrored, storage_url
from archsearch.search.sweep import Sweep
from archsearch.spec import SpecError
from archsearch.study import Study, StudyLog

SPACES = Path(__file__).parent / "spaces"


def space_of(tmp_path: Path, *changes: tuple[str, str], name: str = "hybrid.yaml") -> SearchSpace:
    text = (SPACES / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "space.yaml").write_text(text)
    return load_space(tmp_path / "space.yaml")


def work(sweep: Sweep, at_most: int = 1000) -> None:
    """Every fifth trial fails; the others score what their number says."""
    done = 0
    while sweep.has_work and done < at_most:
        trial = sweep.next()
        if trial is None:
            continue
        done += 1
        if done % 5 == 3:
            sweep.fail(trial, {"kind": "ValueError", "message": "as asked"}, 0.5)
        else:
            sweep.complete(trial, {"recall": done / 100, "perplexity": 10 - done / 10, "x": 1.0}, 2.0)


def opened(run: Path) -> optuna.Study:
    storage = f"sqlite:///{run / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def assert_agrees(run: Path, space: SearchSpace) -> None:
    """Every ended trial of the record is there once, with what the record says of it."""
    study, stored = Study.read(run), opened(run)
    found = {trial.user_attrs["trial"]: trial for trial in stored.trials}
    assert len(found) == len(stored.trials)
    assert found.keys() == {trial.id for trial in study.ended}
    assert TrialState.RUNNING not in {trial.state for trial in stored.trials}
    names = {"complete": "COMPLETE", "failed": "FAIL"}
    for trial in study.ended:
        other = found[trial.id]
        assert other.state.name == names.get(trial.state, "PRUNED")
        assert other.user_attrs["state"] == trial.state
        assert other.user_attrs.get("hash") == (trial.hash or None)
        assert other.params.items() <= trial.params.items()
        derived = {name: trial.params[name] for name in trial.params.keys() - other.params.keys()}
        assert other.user_attrs.get("params", {}) == derived
        assert all("mixture" in name for name in derived)
        if trial.state in ("complete", "stopped"):
            assert other.values == trial.scores(study.objectives)
        for constraint in space.settings.constraints:
            assert other.constraints[constraint.text] == trial.constraints.get(constraint.text, 0)
        assert {n: other.user_attrs[f"mixture.{n}"] for n in trial.mixture} == trial.mixture
        assert other.user_attrs.get("cost.params") == trial.cost.get("params")
        assert other.datetime_complete is not None
        assert other.datetime_complete.timestamp() == pytest.approx(trial.ended, abs=1e-3)
    if study.complete:
        front = {trial.user_attrs["trial"] for trial in stored.best_trials}
        assert front == {trial.id for trial in study.front()}


def test_the_storage_says_what_the_record_says(tmp_path: Path) -> None:
    space = space_of(tmp_path, ("trials: 4", "trials: 12"))
    sweep = Sweep(space, tmp_path / "run")
    with mirrored(space, tmp_path / "run", sweep.log):
        work(sweep)
    sweep.close()
    study = Study.read(tmp_path / "run")
    assert {"complete", "failed", "infeasible"} <= study.counts().keys()
    assert_agrees(tmp_path / "run", space)
    stored = opened(tmp_path / "run")
    assert stored.metric_names == ["recall", "perplexity"]
    assert [d.name for d in stored.directions] == ["MAXIMIZE", "MINIMIZE"]
    broken = next(trial for trial in stored.trials if trial.user_attrs["state"] == "infeasible")
    assert max(broken.constraints.values()) > 0
    failed = next(trial for trial in stored.trials if trial.state == TrialState.FAIL)
    assert failed.user_attrs["cause"] == {"kind": "ValueError", "message": "as asked"}


def test_a_storage_left_behind_is_caught_up(tmp_path: Path) -> None:
    """As after a kill: the record is ahead, a trial runs; and again from nothing."""
    space, run = space_of(tmp_path, ("trials: 4", "trials: 8")), tmp_path / "run"
    sweep = Sweep(space, run)
    work(sweep, at_most=3)
    with mirrored(space, run, sweep.log):
        pass
    assert_agrees(run, space)
    work(sweep, at_most=3)
    while sweep.next() is None:
        pass
    sweep.close()
    again = Sweep(space, run)
    for _ in range(2):
        with mirrored(space, run, again.log):
            pass
        assert_agrees(run, space)
        assert "running" in Study.read(run).counts()
    work(again)
    (run / "optuna.db").unlink()
    with mirrored(space, run, again.log):
        pass
    again.close()
    assert_agrees(run, space)


def test_given_layouts_and_stopped_trials(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("tokenizer: bytes\nd_model: 24\nlayers: [mlp, mlp]\n")
    change = ("seed: 3", "seed: 3, start_from: [own.yaml], scheduler: {halving: {eta: 2, start: 0.5}}")
    space, run = space_of(tmp_path, change, name="tiny.yaml"), tmp_path / "run"
    sweep = Sweep(space, run)
    for place in range(4):
        trial = sweep.next()
        assert trial is not None
        scores = {"recall": 0.5 - place / 10, "perplexity": 5.0 + place}
        sweep.rung(trial, scores, 1.0, 4096)
        if sweep.known[trial].state == "running":
            assert sweep.next() == trial
            sweep.complete(trial, scores, 2.0)
    sweep.close()
    StorageMirror(space, run, f"sqlite:///{run / 'optuna.db'}").catch_up()
    assert_agrees(run, space)
    states = Counter(trial.user_attrs["state"] for trial in opened(run).trials)
    assert states["stopped"] >= 1
    assert all(trial.user_attrs["rungs"][0]["tokens"] == 4096 for trial in opened(run).trials)


def test_a_single_objective_has_intermediate_values(tmp_path: Path) -> None:
    text = "seed: 3, scheduler: {halving: {eta: 2, start: 0.5}}"
    objectives = ("name: tiny\n", "name: tiny\nobjectives: {perplexity: minimize}\n")
    space, run = space_of(tmp_path, ("seed: 3", text), objectives, name="tiny.yaml"), tmp_path / "run"
    sweep = Sweep(space, run)
    trial = sweep.next()
    assert trial is not None
    sweep.rung(trial, {"perplexity": 7.0}, 1.0, 4096)
    sweep.complete(trial, {"perplexity": 6.0}, 1.0)
    sweep.close()
    StorageMirror(space, run, f"sqlite:///{run / 'optuna.db'}").catch_up()
    (stored,) = opened(run).trials
    assert (stored.intermediate_values, stored.value) == ({4096: 7.0}, 6.0)


def test_two_runs_may_share_a_storage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    space = space_of(tmp_path, ("trials: 4", f"trials: 3, storage: '{url}'"))
    for run in (tmp_path / "a", tmp_path / "b"):
        sweep = Sweep(space, run)
        with mirrored(space, run, sweep.log):
            work(sweep)
        sweep.close()
    summaries = optuna.get_all_study_summaries(url)
    assert len(summaries) == 2
    assert all(summary.n_trials >= 3 for summary in summaries)


@pytest.mark.parametrize("damage", ["garbage", "folder", "driver"])
def test_a_broken_storage_stops_nothing(damage: str, tmp_path: Path) -> None:
    change = (
        "trials: 4",
        "trials: 3, storage: 'nosuch://me:secret@host/db'" if damage == "driver" else "trials: 3",
    )
    space, run = space_of(tmp_path, change), tmp_path / "run"
    sweep = Sweep(space, run)
    if damage == "garbage":
        (run / "optuna.db").write_bytes(b"no database" * 1000)
    elif damage == "folder":
        (run / "optuna.db").mkdir()
    with mirrored(space, run, sweep.log):
        work(sweep)
    sweep.close()
    study = Study.read(run)
    assert len(study.ended) >= 3
    (note,) = [note["message"] for note in study.notes]
    assert "the Optuna storage" in note
    assert "secret" not in note


def test_storage_is_no_part_of_what_is_searched(tmp_path: Path) -> None:
    plain = space_of(tmp_path)
    changed = space_of(tmp_path, ("trials: 4", "trials: 4, storage: none"))
    assert plain.hash == changed.hash
    assert storage_url(changed, tmp_path) is None
    sweep = Sweep(changed, tmp_path / "run")
    with mirrored(changed, tmp_path / "run", sweep.log):
        work(sweep)
    sweep.close()
    assert not (tmp_path / "run/optuna.db").exists()
    with pytest.raises(SpecError, match=r"search\.storage: expected auto, none or a URL"):
        space_of(tmp_path, ("trials: 4", "trials: 4, storage: here.db"))


def test_drawn_layouts_as_text() -> None:
    branches: list[Any] = [
        [{"glyph": "M", "kind": "mamba2"}],
        [{"glyph": "A", "kind": "attention", "window": 8}],
    ]
    layout = [{"kind": "parallel", "branches": branches, "merge": "mean"}, {"glyph": "-", "kind": "mlp"}]
    assert drawn_text(layout) == "(M|a)mean-"


@pytest.mark.slow
def test_a_real_sweep_writes_it(tmp_path: Path) -> None:
    space = load_space(SPACES / "failing.yaml")
    run_sweep(space, tmp_path / "run")
    assert_agrees(tmp_path / "run", space)
    assert json.loads((tmp_path / "run/study.jsonl").read_text().splitlines()[-1])["state"] == "finished"
    StudyLog(tmp_path / "run").close()
