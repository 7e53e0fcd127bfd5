"""Whose a storage is: the first run's that uses it, whoever else is pointed at it."""

import json
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from archsearch.search import homes, owner
from archsearch.search.away import Away, StopKey
from archsearch.study import StudyError, StudyLog

SPACES = Path(__file__).parent / "spaces"


@pytest.fixture(autouse=True)
def quickly_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_SETTLE_SECONDS", 0.0)


@pytest.fixture(params=["path", "file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    places = {
        "path": str(tmp_path / "kept"),
        "file": (tmp_path / "kept here").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    return places[request.param]


def begun(run: Path, **trials: str) -> Path:
    """A run whose record has begun. trials: their specs, by name."""
    with StudyLog(run) as log:
        log.note("info", "begun")
    for trial, spec in trials.items():
        homes.write(f"{run}/trials/{trial}/spec.yaml", spec.encode())
    return run


def take(storage: str, run: Path) -> None:
    owner.take_storage(storage, run, "recall", "ab12")


def test_the_first_run_keeps_it(storage: str, tmp_path: Path) -> None:
    first, second = begun(tmp_path / "first"), begun(tmp_path / "second")
    take(storage, first)
    told = json.loads(homes.read(homes.joined(storage, "owner.json")))
    assert (told["folder"], told["study"], told["space_hash"]) == (str(first), "recall", "ab12")
    for run in (second, tmp_path / "not begun"):
        with pytest.raises(StudyError) as refusal:
            owner.check_storage(storage, run)
        assert str(refusal.value) == (
            f"{storage}: is used by another run, {first} on {told['host']} (study recall); "
            f"expected --storage with a place for this run alone, such as {storage}/{run.name}"
        )
    with pytest.raises(StudyError, match="is used by another run"):
        take(storage, second)

    moved = first.rename(tmp_path / "moved")
    take(storage, moved)
    assert json.loads(homes.read(homes.joined(storage, "owner.json"))) == told
    take(homes.joined(storage, "second"), second)


def test_a_storage_of_an_older_version_is_its_runs(storage: str, tmp_path: Path) -> None:
    """It has trials, and no file that says whose."""
    for trial, spec in (("0000", "lr: 1"), ("0001", "lr: 2")):
        homes.write(homes.joined(storage, "trials", trial, "spec.yaml"), spec.encode())
        homes.write(homes.joined(storage, "trials", trial, "checkpoint.pt"), b"")
    others = [
        begun(tmp_path / "nothing"),
        begun(tmp_path / "less", **{"0000": "lr: 1"}),
        begun(tmp_path / "other", **{"0000": "lr: 1", "0001": "lr: 3"}),
    ]
    for run in others:
        with pytest.raises(StudyError, match=f"{storage}: holds another run's trials, such as 000[01]; exp"):
            take(storage, run)
    assert not homes.exists(homes.joined(storage, "owner.json"))
    own = begun(tmp_path / "own", **{"0000": "lr: 1", "0001": "lr: 2", "0002": "lr: 3"})
    take(storage, own)
    assert homes.exists(homes.joined(storage, "owner.json"))


def test_another_runs_folder_is_no_storage(tmp_path: Path) -> None:
    first, second = begun(tmp_path / "first"), begun(tmp_path / "second")
    with pytest.raises(StudyError, match=f"{first}: is another run's folder; expected --storage"):
        take(str(first), second)
    link = tmp_path / "link"
    link.symlink_to(first)
    assert owner.is_run_itself(str(link), first)
    assert owner.is_run_itself(first.as_uri(), first)
    assert not owner.is_run_itself("s3://bucket/first", first)
    Away(str(first), StopKey("key"), at_run=True).take_storage(first, "recall", "ab12")
    assert not (first / "owner.json").exists()


@pytest.mark.parametrize("text", ["", "half of", "[]", "{}"])
def test_a_file_that_names_no_run_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "owner.json").write_text(text)
    with pytest.raises(StudyError, match=f"{tmp_path}/owner.json: does not name a run; delete it"):
        owner.check_storage(str(tmp_path), begun(tmp_path / "run"))


def test_of_runs_that_begin_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have looked before any writes."""
    storage = str(tmp_path / "kept")
    runs = [begun(tmp_path / str(number)) for number in range(8)]
    together = threading.Barrier(len(runs))
    write_new = homes.write_new
    outcomes = []

    def written_together(uri: str, data: bytes) -> None:
        together.wait()
        write_new(uri, data)

    monkeypatch.setattr(homes, "write_new", written_together)

    def begin(run: Path) -> None:
        try:
            take(storage, run)
            outcomes.append("taken")
        except StudyError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["taken"]
    assert os.listdir(storage) == ["owner.json"]


@pytest.mark.parametrize("place", ["no links", "memory"])
def test_who_is_overwritten_while_it_waits_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing but writing is to be had: another run looked before we wrote, and writes after."""
    storage = f"memory://{uuid.uuid4().hex}" if place == "memory" else str(tmp_path / "kept")
    first, second = begun(tmp_path / "first"), begun(tmp_path / "second")

    def no_links(*paths: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    def other_writes(seconds: float) -> None:
        told = {"run": owner.record_id(second), "folder": str(second)}
        homes.write(homes.joined(storage, "owner.json"), json.dumps(told).encode())

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(homes.time, "sleep", other_writes)
    with pytest.raises(StudyError, match=f"is used by another run, {second} on"):
        take(storage, first)
    take(storage, second)
    if place == "no links":
        assert os.listdir(storage) == ["owner.json"]


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    """Before the cluster is looked for, and before anything is written."""
    storage, run = tmp_path / "kept", tmp_path / "run"
    take(str(storage), begun(tmp_path / "first"))
    command = [sys.executable, "-m", "archsearch", "sweep", str(SPACES / "tiny.yaml"), "--out", str(run)]
    done = subprocess.run(
        [*command, "--address", "127.0.0.1:1", "--storage", str(storage)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{storage}: is used by another run, {tmp_path / 'first'} on ")
    assert done.stderr.endswith(f"such as {storage}/run\n")
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert not run.exists()
