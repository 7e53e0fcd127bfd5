"""The course of a sweep: what is trained next, what is recorded, and that a record continues as it began."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from archsearch.experiment.spec import load_experiment
from archsearch.search.driver import SweepResult, run_sweep
from archsearch.search.retries import BACKOFF_SECONDS
from archsearch.search.space import SearchSpace, load_space, read_space
from archsearch.search.sweep import PATIENCE, Sweep
from archsearch.spec.entries import layer_kinds
from archsearch.study import Study, StudyError

SPACES = Path(__file__).parent / "spaces"
SMALL = """
name: small
arch:
  tokenizer: bytes
  d_model: 16
  layers:
    - {$choice: [mlp, mlp: {hidden: {$choice: [43, 48, 64]}}]}
search: {trials: 10, sampler: random}
"""


def space_of(text: str, tmp_path: Path, name: str = "space.yaml") -> SearchSpace:
    (tmp_path / name).write_text(text)
    return load_space(tmp_path / name)


def scores(sweep: Sweep, trial: str) -> dict[str, float]:
    """What training might have found: better recall and worse perplexity with more parameters."""
    params = sweep.known[trial].candidate.costs.summary()["params"]
    return {"recall": params / 1e6, "perplexity": 2 + params / 1e4}


def train(sweep: Sweep, at_most: int = 1000) -> list[str]:
    """Train until there is nothing left, or `at_most` trials; their ids."""
    trained: list[str] = []
    while sweep.has_work and len(trained) < at_most:
        trial = sweep.next()
        if trial is not None:
            sweep.complete(trial, scores(sweep, trial), 1.0)
            trained.append(trial)
    sweep.note_exhaustion()
    return trained


def record(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "study.jsonl").read_text().splitlines()]


def without_times(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "time"} for event in record(run)]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "evolution", "random"])
def test_a_continued_sweep_records_what_an_undisturbed_one_does(sampler: str, tmp_path: Path) -> None:
    text = (SPACES / "hybrid.yaml").read_text()
    space = space_of(
        text.replace("trials: 4, seed: 1", f"trials: 30, seed: 4, sampler: {sampler}, startup: 5"), tmp_path
    )
    whole = Sweep(space, tmp_path / "whole")
    train(whole)
    whole.close()
    for _ in range(6):
        part = Sweep(space, tmp_path / "parts")
        train(part, at_most=5)
        part.close()
    assert without_times(tmp_path / "parts") == without_times(tmp_path / "whole")
    assert {event.get("state") for event in record(tmp_path / "whole")} >= {"complete", "infeasible"}


def test_a_trial_that_was_running_is_the_next_one(tmp_path: Path) -> None:
    space = read_space(SPACES / "tiny.yaml")
    sweep = Sweep(space, tmp_path / "run")
    first, second = sweep.next(), sweep.next()
    assert (first, second) == ("0000", "0001")
    sweep.complete("0001", scores(sweep, "0001"), 1.0)
    sweep.close()
    again = Sweep(space, tmp_path / "run")
    assert again.next() == "0000"
    assert again.known["0000"].candidate == sweep.known["0000"].candidate
    assert again.begun == 2
    again.close()


def test_a_trial_whose_worker_is_lost_has_so_many_retries_over_all_sessions(tmp_path: Path) -> None:
    space = read_space(SPACES / "tiny.yaml")
    pauses = []
    for _ in range(len(BACKOFF_SECONDS) + 1):
        sweep = Sweep(space, tmp_path / "run")
        trial = sweep.next()
        assert trial == "0000"
        pauses.append(sweep.lose(trial, "killed"))
        sweep.close()
    assert pauses == [*BACKOFF_SECONDS, None]
    study = Study.read(tmp_path / "run")
    assert study.trials["0000"].state == "failed"
    assert study.trials["0000"].cause == {"kind": "worker died", "message": "4 times; at last: killed"}
    assert study.trials["0000"].retries == len(BACKOFF_SECONDS)
    notes = [note["message"] for note in study.notes]
    said = "trial 0000: its worker was lost (killed); retry 1 of 3 in 1 s, from its last checkpoint"
    assert (notes[0], len(notes)) == (said, 3)


def test_a_trial_keeps_its_experiment_and_its_drawing(tmp_path: Path) -> None:
    space = space_of((SPACES / "hybrid.yaml").read_text().replace("trials: 4", "trials: 20"), tmp_path)
    sweep = Sweep(space, tmp_path / "run")
    train(sweep)
    sweep.write_front()
    sweep.close()
    study = Study.read(tmp_path / "run")
    known = {cls.glyph for cls in layer_kinds().values()}
    parallels = 0
    for trial in study.trials.values():
        experiment = load_experiment(tmp_path / "run/trials" / trial.id / "spec.yaml")
        assert (experiment.name, experiment.hash) == (f"hybrid-{trial.id}", trial.hash)
        assert trial.cost["params"] <= 120_000 or trial.state == "infeasible"
        assert "state_bytes@64" in trial.cost
        assert trial.mixture == experiment.data.weights
        assert len(trial.layout) == len(experiment.arch.nodes)
        for drawn, node in zip(trial.layout, experiment.arch.nodes, strict=True):
            assert drawn["kind"] == node.kind
            parallels += node.kind == "parallel"
            assert node.kind == "parallel" or drawn["glyph"] in known
    assert parallels
    front = sorted(path.stem for path in (tmp_path / "run/front").iterdir())
    assert front == sorted(trial.id for trial in study.front())
    for name in front:
        assert load_experiment(tmp_path / "run/front" / f"{name}.yaml").name == f"hybrid-{name}"


def test_the_front_holds_its_members_only(tmp_path: Path) -> None:
    sweep = Sweep(read_space(SPACES / "tiny.yaml"), tmp_path / "run")
    points = [(0.5, 8.0), (0.6, 9.0), (0.7, 7.0)]
    fronts = []
    for recall, perplexity in points:
        trial = sweep.next()
        assert trial is not None
        sweep.complete(trial, {"recall": recall, "perplexity": perplexity}, 1.0)
        sweep.write_front()
        fronts.append(sorted(path.name for path in (tmp_path / "run/front").iterdir()))
    sweep.close()
    assert fronts == [["0000.yaml"], ["0000.yaml", "0001.yaml"], ["0002.yaml"]]


def test_a_small_space_is_tried_once_and_then_ends(tmp_path: Path) -> None:
    """Five forms, three models: `mlp` alone has 43 hidden units rounded up to 48, as one of the others."""
    sweep = Sweep(space_of(SMALL, tmp_path), tmp_path / "run")
    assert len(train(sweep)) == 3
    sweep.close()
    assert sweep.exhausted
    study = Study.read(tmp_path / "run")
    for trial in study.trials.values():
        if trial.state == "duplicate":
            assert trial.of is not None
            assert trial.values == study.trials[trial.of].values
            assert trial.hash == study.trials[trial.of].hash
    assert "ending at 3 of 10 trials" in study.notes[-1]["message"]


def test_a_space_that_allows_next_to_nothing_ends(tmp_path: Path) -> None:
    text = SMALL.replace("tokenizer: bytes\n", "tokenizer: bytes\n  scales: {logits: {$float: [0.5, 2]}}\n")
    sweep = Sweep(space_of(text + 'constraints: ["params <= 1"]\n', tmp_path), tmp_path / "run")
    assert train(sweep) == []
    sweep.close()
    assert sweep.counts() == {"infeasible": PATIENCE}
    assert "break constraints" in Study.read(tmp_path / "run").notes[-1]["message"]


def test_scores_that_are_no_numbers_fail_the_trial(tmp_path: Path) -> None:
    sweep = Sweep(read_space(SPACES / "tiny.yaml"), tmp_path / "run")
    for metrics in ({"recall": 0.5, "perplexity": float("inf")}, {"recall": 0.5}):
        trial = sweep.next()
        assert trial is not None
        sweep.complete(trial, metrics, 1.0)
        event = record(tmp_path / "run")[-1]
        assert (event["state"], event["cause"]["kind"]) == ("failed", "non-finite metric")
        assert "perplexity" in event["cause"]["message"]
    sweep.close()
    # Failed trials are not tried again, and the record of them can be continued.
    again = Sweep(read_space(SPACES / "tiny.yaml"), tmp_path / "run")
    assert again.next() == "0002"
    again.close()


def test_costs_may_be_objectives(tmp_path: Path) -> None:
    text = (SPACES / "tiny.yaml").read_text()
    objectives = "objectives: {recall: maximize, state_bytes@64: {direction: minimize, reference: 1e6}}\n"
    sweep = Sweep(space_of(text + objectives, tmp_path), tmp_path / "run")
    train(sweep, at_most=2)
    sweep.close()
    study = Study.read(tmp_path / "run")
    assert study.header.reference == {"recall": 0.0, "state_bytes@64": 1e6}
    for trial in study.complete:
        assert trial.values["state_bytes@64"] == trial.cost["state_bytes@64"]


def test_given_layouts_are_the_first_candidates(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("tokenizer: bytes\nd_model: 24\nlayers: [mlp, mlp]\n")
    text = (SPACES / "tiny.yaml").read_text().replace("seed: 3", "seed: 3, start_from: [own.yaml]")
    space = space_of(text, tmp_path)
    sweep = Sweep(space, tmp_path / "run")
    train(sweep, at_most=1)
    sweep.close()
    again = Sweep(space, tmp_path / "run")
    train(again)
    again.close()
    first, *others = Study.read(tmp_path / "run").trials.values()
    assert first.params["start_from"] == "own.yaml"
    assert "training.lr" in first.params
    assert [layer["kind"] for layer in first.layout] == ["mlp", "mlp"]
    assert all("start_from" not in trial.params for trial in others)


def test_another_space_is_refused_with_what_changed(tmp_path: Path) -> None:
    text = (SPACES / "tiny.yaml").read_text()
    Sweep(space_of(text, tmp_path), tmp_path / "run").close()
    changed = space_of(text.replace("d_model: 16", "d_model: 32"), tmp_path)
    with pytest.raises(
        StudyError, match=r"has changed since this run began: arch\.d_model: 16 -> 32; choose"
    ):
        run_sweep(changed, tmp_path / "run")
    # The refusal leaves the run as it was, and the lock free.
    Sweep(space_of(text, tmp_path), tmp_path / "run").close()


def test_more_trials_continue_a_finished_run(tmp_path: Path) -> None:
    space = read_space(SPACES / "tiny.yaml")
    sweep = Sweep(space, tmp_path / "run", trials=2)
    train(sweep)
    sweep.close()
    more = Sweep(space, tmp_path / "run", trials=3)
    assert train(more) == ["0002"]
    more.close()
    assert Study.read(tmp_path / "run").header.trials == 3


def test_folders_that_are_no_run_are_left_alone(tmp_path: Path) -> None:
    space = read_space(SPACES / "tiny.yaml")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match=r"not a run folder: it holds 'notes\.txt'"):
        Sweep(space, tmp_path)
    with pytest.raises(StudyError, match="is a file"):
        Sweep(space, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    space = read_space(SPACES / "tiny.yaml")
    first = Sweep(space, tmp_path / "run")
    with pytest.raises(StudyError, match="already running"):
        Sweep(space, tmp_path / "run")
    first.close()


def test_a_killed_write_loses_nothing(tmp_path: Path) -> None:
    """The record cut off at every byte of its last two lines still opens, with all whole lines counted."""
    space = read_space(SPACES / "tiny.yaml")
    sweep = Sweep(space, tmp_path / "run")
    train(sweep, at_most=2)
    sweep.close()
    whole = (tmp_path / "run/study.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) - len(lines[-1]) - 40, len(whole), 97):
        run = tmp_path / f"cut{cut}"
        run.mkdir()
        shutil.copy(tmp_path / "run/space.yaml", run)
        (run / "study.jsonl").write_bytes(whole[:cut])
        again = Sweep(space, run)
        finished = whole[:cut].count(b"\n")
        assert len([e for e in lines[:finished] if b'"complete"' in e]) == again.counts().get("complete", 0)
        train(again)
        again.close()
        assert Study.read(run).counts()["complete"] == 4


def test_exit_codes() -> None:
    run = Path("run")
    assert SweepResult(run, 1, {"complete": 3}).exit_code == 0
    assert SweepResult(run, 0, {"failed": 3}).exit_code == 1
    assert SweepResult(run, 0, {}).exit_code == 1
    assert SweepResult(run, 1, {"complete": 3, "failed": 1}).exit_code == 3
    assert SweepResult(run, 1, {"complete": 3, "failed": 1}, interrupted=True).exit_code == 130


def test_every_line_about_a_trial_can_be_read_by_itself(tmp_path: Path) -> None:
    sweep = Sweep(space_of(SMALL, tmp_path), tmp_path / "run")
    train(sweep)
    sweep.close()
    lines = [event for event in record(tmp_path / "run") if event["event"] == "trial"]
    assert {"running", "complete", "duplicate"} == {event["state"] for event in lines}
    for event in lines:
        assert {"trial", "state", "values", "params", "hash", "time"} <= set(event)
        assert bool(event["values"]) == (event["state"] in ("complete", "duplicate"))
    hashes = {event["hash"]: event["trial"] for event in lines if event["state"] == "complete"}
    for event in lines:
        if event["state"] == "duplicate":
            assert hashes[event["hash"]] == event["of"]
