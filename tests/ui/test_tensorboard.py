"""Event files say what the record and the curves say; read back by their own format."""

import json
import struct
from pathlib import Path

import pytest

from archsearch.study import Study, StudyLog
from archsearch.ui.tensorboard import write_tensorboard

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(tag, step) -> value of the one event file in a folder (records: length, checksum, bytes, checksum)."""
    (path,) = folder.glob("events*")
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    return found


def test_curves_and_scores_are_written(tmp_path: Path) -> None:
    with StudyLog(tmp_path) as log:
        header = {"event": "study", "version": 1, "name": "s", "objectives": {"recall": "maximize"}}
        log.append(header)
        log.trial("0000", "running", params={"lr": 0.1})
        log.trial("0000", "complete", values={"recall": 0.5}, metrics={"recall": 0.5, "perplexity": 4.0})
        log.trial("0001", "infeasible", params={}, constraints={"params <= 1": 3.0})
    own = tmp_path / "trials/0000"
    own.mkdir(parents=True)
    points = [
        {"step": 1, "steps": 2, "loss": 5.5, "losses": {"code": 5.0}, "lr": 0.25},
        {"step": 2, "steps": 2, "loss": float("inf"), "lr": 0.5},
    ]
    (own / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    study = Study.read(tmp_path)
    study.read_curves()
    for _ in range(2):  # again: nothing is written twice
        assert write_tensorboard(study, tmp_path / "tb") == 2
        assert scalars(tmp_path / "tb/0000") == {
            ("loss", 1): 5.5,
            ("loss/code", 1): 5.0,
            ("lr", 1): 0.25,
            ("lr", 2): 0.5,
            ("score/recall", 2): 0.5,
            ("score/perplexity", 2): 4.0,
            ("objective/recall", 2): 0.5,
        }
    assert scalars(tmp_path / "tb/0001") == {}
