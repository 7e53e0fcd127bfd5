import json

import pytest

from archsearch.study import Study, StudyError, StudyLog
from archsearch.study.record import LAST_CURVES

T0 = 1000.0
HEADER = {
    "event": "study",
    "version": 1,
    "name": "demo",
    "objectives": {"recall": "maximize", "perplexity": "minimize"},
    "reference": {"recall": 0.0, "perplexity": 10.0},
    "trials": 6,
    "concurrency": 2,
    "time": T0,
}


@pytest.fixture
def log(tmp_path):
    with StudyLog(tmp_path) as log:
        log.append(HEADER)
        yield log


def complete(log, name, recall, perplexity, time=T0, **fields):
    values = {"recall": recall, "perplexity": perplexity}
    log.append(
        {"event": "trial", "trial": name, "state": "complete", "values": values, "time": time, **fields}
    )


def metrics(tmp_path, name, *points, mode="w"):
    path = tmp_path / "trials" / name / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(point) + "\n" for point in points)


def test_front_best_and_hypervolume(tmp_path, log):
    complete(log, "1", 0.5, 6.0, T0 + 1)
    complete(log, "2", 0.9, 8.0, T0 + 2)
    complete(log, "3", 0.4, 7.0, T0 + 3)
    study = Study.read(tmp_path)
    assert [trial.id for trial in study.front()] == ["2", "1"]
    assert study.best("recall").id == "2"
    assert study.best("perplexity").id == "1"
    assert study.hypervolume_history() == pytest.approx([0.5 * 4, 2.8, 2.8])
    assert study.assumed_reference == []
    with pytest.raises(StudyError, match="expected one of recall, perplexity"):
        study.best("loss")


def test_an_absent_reference_is_the_worst_value_seen(tmp_path, log):
    log.append({**HEADER, "reference": {"recall": 0.0}})
    complete(log, "1", 0.5, 6.0)
    complete(log, "2", 0.9, 8.0)
    study = Study.read(tmp_path)
    assert study.reference == {"recall": 0.0, "perplexity": 8.0}
    assert study.assumed_reference == ["perplexity"]
    assert study.hypervolume() == pytest.approx(0.5 * 2)


def test_missing_and_non_finite_values_are_not_complete(tmp_path, log):
    complete(log, "1", float("nan"), 6.0)
    log.trial("2", "complete", values={"recall": 0.9})
    study = Study.read(tmp_path)
    assert study.complete == []
    assert study.front() == []
    assert study.best("recall") is None
    assert study.hypervolume() == 0.0


def test_a_duplicate_has_its_originals_values_and_counts_once(tmp_path, log):
    complete(log, "1", 0.5, 6.0)
    log.trial("2", "duplicate", of="1")
    study = Study.read(tmp_path)
    assert study.trials["2"].values == {"recall": 0.5, "perplexity": 6.0}
    assert [trial.id for trial in study.front()] == ["1"]
    assert study.counts() == {"complete": 1, "duplicate": 1}


def test_the_last_state_counts_and_fields_stay(tmp_path, log):
    log.trial("1", "running", params={"lr": 0.1}, cost={"params": 10})
    log.trial("1", "failed", cause={"kind": "non-finite loss", "message": "nan", "step": 3}, seconds=2.0)
    study = Study.read(tmp_path)
    trial = study.trials["1"]
    assert (trial.state, trial.params, trial.cause["step"]) == ("failed", {"lr": 0.1}, 3)
    log.trial("1", "running")
    study.refresh()
    assert (trial.state, trial.cause, trial.ended) == ("running", None, None)


def test_refresh_reads_only_what_is_new(tmp_path, log):
    study = Study.read(tmp_path)
    complete(log, "1", 0.5, 6.0)
    assert [event["trial"] for event in study.refresh()] == ["1"]
    assert study.refresh() == []


def test_a_record_that_was_replaced_is_read_anew(tmp_path, log):
    complete(log, "1", 0.5, 6.0)
    complete(log, "2", 0.6, 5.0)
    study = Study.read(tmp_path)
    log.close()
    (tmp_path / "study.jsonl").unlink()
    with StudyLog(tmp_path) as second:
        second.append(HEADER)
        complete(second, "9", 0.5, 6.0)
    study.refresh()
    assert list(study.trials) == ["9"]


def test_progress_and_curves_of_running_trials_are_followed(tmp_path, log):
    log.trial("1", "running")
    metrics(tmp_path, "1", {"step": 50, "steps": 200, "loss": 3.0})
    study = Study.read(tmp_path)
    assert study.trials["1"].progress == 0.25
    metrics(tmp_path, "1", {"step": 100, "steps": 200, "loss": 2.0}, {"evaluation": {"recall": 1}}, mode="a")
    study.refresh()
    assert study.trials["1"].progress == 0.5
    assert study.trials["1"].loss == 2.0


def test_a_resumed_trial_overwrites_the_steps_it_repeats_even_after_a_torn_line(tmp_path, log):
    log.trial("1", "running")
    metrics(tmp_path, "1", *({"step": step, "steps": 400, "loss": 9.0} for step in (100, 200, 300)))
    with (tmp_path / "trials" / "1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 350, "los\n')
    metrics(tmp_path, "1", {"step": 200, "steps": 400, "loss": 5.0}, mode="a")
    study = Study.read(tmp_path)
    assert [(point["step"], point["loss"]) for point in study.trials["1"].curve] == [(100, 9.0), (200, 5.0)]


def test_elapsed_leaves_pauses_out(tmp_path, log):
    def session(state, time):
        log.append({"event": "session", "state": state, "pid": 1, "time": time})

    session("started", T0)
    session("interrupted", T0 + 60)
    session("started", T0 + 1000)
    complete(log, "1", 0.5, 6.0, T0 + 1030)
    log.close()
    study = Study.read(tmp_path)
    assert study.elapsed == 90
    assert study.status == "interrupted"


def test_a_killed_session_ends_with_its_last_line(tmp_path, log):
    log.append({"event": "session", "state": "started", "pid": 1, "time": T0})
    complete(log, "1", 0.5, 6.0, T0 + 40)
    log.append({"event": "session", "state": "started", "pid": 2, "time": T0 + 500})
    log.append({"event": "session", "state": "finished", "pid": 2, "time": T0 + 510})
    study = Study.read(tmp_path)
    assert study.elapsed == 50
    assert study.status == "finished"
    assert study.eta == 0.0


def test_eta_is_the_mean_work_over_the_workers(tmp_path, log):
    log.append({"event": "session", "state": "started", "pid": 1, "time": T0})
    study = Study.read(tmp_path)
    assert study.eta is None
    complete(log, "1", 0.5, 6.0, seconds=20.0)
    complete(log, "2", 0.5, 6.0, seconds=40.0)
    log.trial("3", "running")
    metrics(tmp_path, "3", {"step": 50, "steps": 100, "loss": 1.0})
    study.refresh()
    assert study.eta == pytest.approx((3 * 30 + 15) / 2)


def test_unknown_events_and_fields_are_kept_and_ignored(tmp_path, log):
    log.append({"event": "weather", "sky": "blue"})
    log.trial("1", "running", mood="good")
    study = Study.read(tmp_path)
    assert list(study.trials) == ["1"]
    assert study.timeline[1]["sky"] == "blue"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "tri', "study.jsonl:2: not a JSON object"),
        ("[1, 2]", "study.jsonl:2: expected a JSON object, found list"),
        ('{"event": "trial", "trial": "1", "state": "done"}', "study.jsonl:2: trial event: state"),
        ('{"event": "study", "version": 7}', "study.jsonl:2: .*newer archsearch"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, log, line, message):
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write(line + "\n" + json.dumps({"event": "note", "level": "info", "message": ""}) + "\n")
    with pytest.raises(StudyError, match=message):
        Study.read(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"not a run folder: it has no study\.jsonl"):
        Study.read(tmp_path)
    with pytest.raises(StudyError, match="no such folder"):
        Study.read(tmp_path / "nowhere")


def test_three_objectives_have_a_front_too(tmp_path, log):
    log.append({**HEADER, "objectives": {**HEADER["objectives"], "state_bytes": "minimize"}})
    for name, values in {"1": (0.5, 6, 10), "2": (0.5, 6, 20), "3": (0.1, 9, 1)}.items():
        log.trial(
            name, "complete", values=dict(zip(("recall", "perplexity", "state_bytes"), values, strict=True))
        )
    study = Study.read(tmp_path)
    assert [trial.id for trial in study.front()] == ["1", "3"]
    assert study.reference["state_bytes"] == 20


def test_a_record_without_a_header_waits(tmp_path):
    with StudyLog(tmp_path):
        study = Study.read(tmp_path)
        assert (study.status, study.front(), study.eta) == ("waiting", [], None)


def test_only_the_last_curves_that_were_followed_are_kept(tmp_path, log):
    """What a long sweep's dashboard holds does not grow with the curves that it has shown."""
    study = Study(tmp_path)
    curve = [{"step": step, "steps": 3, "loss": 1.0} for step in (1, 2, 3)]
    for number in range(LAST_CURVES + 3):
        metrics(tmp_path, str(number), *curve[: 1 if number == 4 else 3])
        log.append({"event": "trial", "trial": str(number), "state": "running", "time": T0 + number})
        study.refresh()
        complete(log, str(number), 0.5, 6.0, time=T0 + number + 0.5)
        study.refresh()
    followed = [trial.id for trial in study.trials.values() if trial.curve]
    # A curve of one point is no line to draw, so an older one is kept in its place.
    assert followed == ["2", "3", "5", "6"]
    study.read_curves()
    study.refresh()
    assert all(trial.curve for trial in study.trials.values())


def test_a_trial_that_waited_has_its_whole_curve_again(tmp_path, log):
    rung = {"level": 0, "share": 0.5, "tokens": 10, "values": {}}
    study = Study(tmp_path)
    for number in range(LAST_CURVES + 2):
        name = str(number)
        metrics(tmp_path, name, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0})
        log.append({"event": "trial", "trial": name, "state": "running"})
        study.refresh()
        log.append({"event": "trial", "trial": name, "state": "paused", "rung": rung})
        study.refresh()
    assert not study.trials["0"].curve
    metrics(tmp_path, "0", {"step": 3, "loss": 0.5}, mode="a")
    log.append({"event": "trial", "trial": "0", "state": "running"})
    study.refresh()
    assert [point["step"] for point in study.trials["0"].curve] == [1, 2, 3]
    for number in range(1, LAST_CURVES + 2):
        log.append({"event": "trial", "trial": str(number), "state": "stopped", "time": T0 + number})
    study.refresh()
    assert [trial.id for trial in study.trials.values() if trial.curve] == ["0", "2", "3", "4", "5"]


def test_a_header_that_changes_the_objectives_changes_what_is_complete(tmp_path, log):
    complete(log, "1", 0.5, 6.0)
    study = Study.read(tmp_path)
    assert study.hypervolume() == pytest.approx(2.0)
    log.append({**HEADER, "objectives": {"recall": "maximize"}, "reference": {"recall": 0.25}})
    study.refresh()
    assert study.hypervolume() == pytest.approx(0.25)
    log.append({**HEADER, "objectives": {"recall": "maximize", "speed": "maximize"}})
    study.refresh()
    assert study.complete == []
