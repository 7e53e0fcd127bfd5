import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from archsearch.study import Study, StudyError, StudyLog, StudyWriteError, is_live
from archsearch.study.log import json_safe

HEADER = {
    "event": "study",
    "version": 1,
    "name": "demo",
    "objectives": {"recall": "maximize", "perplexity": "minimize"},
    "reference": {"recall": 0.0, "perplexity": 16.0},
    "trials": 4,
}


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "study.jsonl").read_text().splitlines()]


def test_events_come_back_as_written(tmp_path):
    with StudyLog(tmp_path / "deep" / "run") as log:
        log.append(HEADER)
        written = log.trial("0001", "running", params={"lr": 0.1}, layout=[])
    assert lines(tmp_path / "deep" / "run")[-1] == written
    assert written["time"] == pytest.approx(time.time(), abs=60)


def test_non_finite_and_numpy_values_become_json(tmp_path):
    with StudyLog(tmp_path) as log:
        values = {"recall": float("nan"), "perplexity": np.float32("inf")}
        log.trial("0001", "complete", values=values, metrics={"a": np.float32(0.5), "b": np.arange(2)})
    (event,) = lines(tmp_path)
    assert event["values"] == {"recall": None, "perplexity": None}
    assert event["metrics"] == {"a": 0.5, "b": [0, 1]}


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with StudyLog(tmp_path) as log, pytest.raises(StudyError, match="has no JSON form"):
        log.trial("0001", "running", params={"x": object()})
    assert (tmp_path / "study.jsonl").read_bytes() == b""
    assert json_safe({1: (True, None)}) == {"1": [True, None]}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "trial", "trial": "1", "state": "done"}, "expected one of running, paused, complete"),
        ({"event": "trial", "state": "running"}, "expected the trial's id"),
        ({"event": "note", "level": "loud", "message": ""}, "info, warning, error"),
        ({"event": "session", "state": "over"}, "started, finished, interrupted"),
        ({"name": "x"}, "expected a name such as 'trial'"),
        ({**HEADER, "version": 99}, "written by a newer archsearch"),
        ({**HEADER, "version": None}, "expected a whole number"),
        ({**HEADER, "objectives": {"recall": "max"}}, r"objectives.recall: expected one of maximize"),
        ({**HEADER, "objectives": ["recall"]}, "expected a mapping"),
    ],
)
def test_events_that_readers_could_not_use_are_refused(tmp_path, event, message):
    with StudyLog(tmp_path) as log, pytest.raises(StudyError, match=message):
        log.append(event)


@pytest.mark.parametrize("size", [1, 17, 200_000])
def test_a_torn_last_line_is_moved_aside(tmp_path, size):
    with StudyLog(tmp_path) as log:
        log.append(HEADER)
    whole = (tmp_path / "study.jsonl").read_bytes()
    torn = b'{"event":"trial"' + b"x" * size
    (tmp_path / "study.jsonl").write_bytes(whole + torn)
    assert Study.read(tmp_path).trials == {}
    with StudyLog(tmp_path) as log:
        log.trial("0001", "running")
    assert (tmp_path / "study.jsonl.torn").read_bytes() == torn + b"\n"
    study = Study.read(tmp_path)
    assert list(study.trials) == ["0001"]
    assert f"{len(torn)} bytes" in study.notes[0]["message"]


def test_a_second_writer_is_refused_and_let_in_afterwards(tmp_path):
    with StudyLog(tmp_path) as log:
        assert is_live(tmp_path)
        with pytest.raises(StudyError, match=f"process {os.getpid()} is already running this study"):
            StudyLog(tmp_path)
        log.append(HEADER)
    assert not is_live(tmp_path)
    StudyLog(tmp_path).close()


def test_a_killed_writer_leaves_no_lock_and_loses_no_line(tmp_path):
    script = (
        "import sys, time\nfrom archsearch.study import StudyLog\n"
        f"log = StudyLog({str(tmp_path)!r})\nnumber = 0\n"
        "while True:\n"
        "    log.trial(f'{number:04d}', 'running'); print(number, flush=True); number += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    seen = [int(writer.stdout.readline()) for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with StudyLog(tmp_path):
        pass
    assert {f"{number:04d}" for number in seen} <= set(Study.read(tmp_path).trials)


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    real = os.write
    with StudyLog(tmp_path) as log:
        log.append(HEADER)
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(StudyWriteError, match="cannot append to the record"):
            log.trial("0001", "running")
        monkeypatch.setattr(os, "write", real)
        log.trial("0002", "running")
    assert list(Study.read(tmp_path).trials) == ["0002"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyWriteError, match="cannot open the record for writing"):
        StudyLog(tmp_path / "file" / "run")


def test_a_pickled_log_is_closed(tmp_path):
    with StudyLog(tmp_path) as log:
        copy = pickle.loads(pickle.dumps(log))
        with pytest.raises(StudyWriteError, match="closed"):
            copy.note("info", "x")
        copy.close()
        log.note("info", "still open")


def _write_many(run_dir, count):
    with StudyLog(run_dir) as log:
        log.append(HEADER)
        for number in range(count):
            values = {"recall": number / count, "perplexity": 9.0}
            log.trial(f"{number:04d}", "complete", values=values, metrics={f"m{i}": 0.1 for i in range(50)})


def test_a_reader_beside_a_writer_sees_whole_lines_only(tmp_path):
    with StudyLog(tmp_path) as log:
        log.append(HEADER)
    study = Study.read(tmp_path)
    writer = multiprocessing.get_context("spawn").Process(target=_write_many, args=(tmp_path, 300))
    writer.start()
    sizes = []
    while writer.is_alive():
        study.refresh()
        sizes.append(len(study.trials))
    writer.join()
    study.refresh()
    assert writer.exitcode == 0
    assert sizes == sorted(sizes)
    assert len(study.trials) == 300
    assert study.best("recall").id == "0299"
