"""Trials' folders on shared storage: what arrives, what is fetched, and what is somebody else's."""

import uuid
from pathlib import Path

import pytest

from archsearch.search import homes
from archsearch.search.away import Away, AwayWork, StopKey
from archsearch.search.work import Outcome
from archsearch.spec import to_yaml
from tests.search.test_work import VALUES


@pytest.fixture(params=["path", "file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    places = {
        "path": str(tmp_path / "kept"),
        "file": (tmp_path / "kept").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    return homes.joined(places[request.param], "0001")


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_stored_is_fetched_and_deletions_follow(uri: str, tmp_path: Path) -> None:
    here, there, again = (tmp_path / name for name in ("here", "there", "again"))
    first = homes.Home(uri, "spec", here)
    here.mkdir()
    first.fetch()
    assert listed(here) == ["spec.yaml"]
    (here / "replicates/1").mkdir(parents=True)
    (here / "replicates/1/checkpoint.pt").write_bytes(b"\0" * 3_000_000)
    (here / "metrics.jsonl").write_text("1\n")
    (here / "weights.safetensors.partial").write_text("half")
    (here / ".lock").touch()
    first.store()

    there.mkdir()
    second = homes.Home(uri, "spec", there)
    second.fetch()
    assert listed(there) == ["metrics.jsonl", "replicates/1/checkpoint.pt", "spec.yaml"]
    assert (there / "replicates/1/checkpoint.pt").stat().st_size == 3_000_000
    (there / "replicates/1/checkpoint.pt").unlink()
    (there / "metrics.jsonl").write_text("1\n2\n")
    second.store()

    again.mkdir()
    homes.Home(uri, "spec", again).fetch()
    assert listed(again) == ["metrics.jsonl", "spec.yaml"]
    assert (again / "metrics.jsonl").read_text() == "1\n2\n"


def test_what_another_experiment_left_is_not_gone_on_from(uri: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, spec in zip(folders, ("lr: 1", "lr: 2"), strict=True):
        folder.mkdir()
        home = homes.Home(uri, spec, folder)
        home.fetch()
        assert listed(folder) == ["spec.yaml"]
        (folder / "checkpoint.pt").touch()
        home.store()
    assert (folders[1] / "spec.yaml").read_text() == "lr: 2"
    system, path = homes.open_filesystem(uri)
    aside = [
        info.path
        for info in homes._below(system, path.rsplit("/", 1)[0])
        if info.base_name == "spec.yaml" and not info.path.startswith(f"{path}/")
    ]
    assert len(aside) == 1
    with system.open_input_stream(aside[0]) as file:
        assert file.read() == b"lr: 1"


def test_a_checkpoint_arrives_after_what_belongs_with_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes.Home(uri, "spec", tmp_path)
    order = []
    monkeypatch.setattr(home, "_write", lambda source, target: order.append(source.name))
    for name in ("checkpoint.pt", "metrics.jsonl", "spec.yaml"):
        (tmp_path / name).touch()
    home.store()
    assert order[-1] == "checkpoint.pt"
    assert len(order) == 3


def test_paths_are_those_of_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert homes.absolute("kept") == f"{tmp_path}/kept"
    assert homes.absolute("s3://bucket/kept") == "s3://bucket/kept"
    assert homes.local_path("s3://bucket/kept") is None
    assert homes.local_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert homes.joined("s3://bucket/kept?region=x", "trials", "0") == "s3://bucket/kept/trials/0?region=x"


@pytest.mark.parametrize("uri", ["nowhere://x", "gdrive://x"])
def test_storage_that_cannot_be_opened_is_said(uri: str) -> None:
    with pytest.raises(ValueError, match=f"^{uri}: cannot open this storage"):
        homes.open_filesystem(uri)


def test_what_a_person_looks_at_is_brought_to_the_run(tmp_path: Path) -> None:
    kept, run = tmp_path / "kept", tmp_path / "run"
    home = kept / "trials/0000"
    for folder in (home, run):
        folder.mkdir(parents=True)
    (home / "metrics.jsonl").write_text("1\n")
    (home / "checkpoint.pt").touch()
    away = Away(str(kept), StopKey("key"), at_run=False)
    away.follow({"0000": run, "0001": run})
    assert listed(run) == ["metrics.jsonl"]
    (home / "error.txt").write_text("no memory")
    away.bring("0000", run)
    assert (run / "error.txt").read_text() == "no memory"
    Away("nowhere://x", StopKey("key"), at_run=False).bring("0000", run)
    away.drop_checkpoints(["0000", "0001"])
    assert listed(home) == ["error.txt", "metrics.jsonl"]


def test_a_trial_goes_on_elsewhere_from_what_was_stored(tmp_path: Path) -> None:
    """Stopped half-way on one machine, ended on another: the same scores as on one, and no scratch left."""
    uri = homes.joined(f"memory://{uuid.uuid4().hex}", "0000")
    stop = tmp_path / "stop"

    def finish(work: AwayWork) -> Outcome:
        while (outcome := work.advance()) is None:
            pass
        work.close()
        assert not work.home.folder.exists()
        return outcome

    spec = to_yaml(VALUES)
    rung = finish(AwayWork(uri, spec, stop, "cpu", 0.5))
    assert rung["state"] == "rung"
    assert homes.exists(homes.joined(uri, "checkpoint.pt"))
    last = finish(AwayWork(uri, spec, stop, "cpu", 1.0))
    whole = finish(AwayWork(uri + "-other", spec, stop, "cpu", 1.0))
    assert last["metrics"] == whole["metrics"]
    assert homes.exists(homes.joined(uri, "weights.safetensors"))
    assert not homes.exists(homes.joined(uri, "checkpoint.pt"))
