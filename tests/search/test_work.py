"""A trial's work: to a rung and on from there, over several seeds, and the same to the last bit."""

import errno
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archsearch.experiment.spec import load_experiment
from archsearch.search.work import Outcome, TrialWork, unwritable
from archsearch.spec import to_yaml

SPACES = Path(__file__).parent / "spaces"
VALUES = {
    "arch": {"tokenizer": "bytes", "d_model": 16, "layers": ["attention", {"mlp": {"hidden": 32}}]},
    "training": {"tokens": 4096, "context": 32, "tokens_per_step": 256, "checkpoint_every": 3},
    "evaluation": {"tokens": 512, "examples": 8},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/spec.yaml").write_text(to_yaml(VALUES))
    return tmp_path / "trial"


def finish(work: TrialWork) -> Outcome:
    while (outcome := work.advance()) is None:
        pass
    assert outcome["state"] != "failed", outcome
    return outcome


def test_a_trial_by_rungs_ends_as_one_that_ran_through(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "spec.yaml").write_text(to_yaml(VALUES))
    stop = tmp_path / "stop"
    whole = finish(TrialWork(other, stop))
    first = finish(TrialWork(folder, stop, goal=1 / 9))
    assert (first["state"], first["tokens"]) == ("rung", 512)
    # Asked again, as after a kill: the same answer from the checkpoint, and nothing trained twice.
    assert finish(TrialWork(folder, stop, goal=1 / 9))["metrics"] == first["metrics"]
    assert finish(TrialWork(folder, stop, goal=1 / 3))["tokens"] == 1280
    last = finish(TrialWork(folder, stop))
    assert (last["state"], last["metrics"]) == ("complete", whole["metrics"])
    weights, others = (load_file(run / "weights.safetensors") for run in (folder, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert not (folder / "checkpoint.pt").exists()


def test_a_full_disk_is_no_failure_of_the_trial(folder: Path, tmp_path: Path) -> None:
    """The system refuses to write beyond a size; the same trial goes on once it no longer does."""
    stop = tmp_path / "stop"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        outcome = finish(TrialWork(folder, stop))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert outcome["state"] == "blocked"
    assert outcome["message"] == f"{folder}: cannot be written: File too large"
    assert not (folder / "error.txt").exists()
    assert finish(TrialWork(folder, stop))["state"] == "complete"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: cannot be written: No space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "/run/0: cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/run/0/x"), "/run/0/x: cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), None),
        (ValueError("no number"), None),
    ],
)
def test_what_cannot_be_written_is_told_from_other_errors(error: Exception, said: str | None) -> None:
    found = unwritable(error, Path("/run/0"))
    assert found is None if said is None else found is not None and found.startswith(said)
    later = RuntimeError("unexpected pos 64 vs 0")
    later.__context__ = error
    assert unwritable(later, Path("/run/0")) == found


def test_several_seeds_are_means_with_their_spread(folder: Path, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    single = finish(TrialWork(folder, stop))
    found = finish(TrialWork(folder, stop, seeds=3))
    runs = [folder, folder / "replicates/1", folder / "replicates/2"]
    assert [load_experiment(run / "spec.yaml").training.seed for run in runs] == [0, 1, 2]
    assert all((run / "weights.safetensors").exists() for run in runs)
    perplexities = [finish(TrialWork(run, stop))["metrics"]["perplexity"] for run in runs]
    assert perplexities[0] == single["metrics"]["perplexity"]
    assert len(set(perplexities)) == 3
    assert found["metrics"]["perplexity"] == pytest.approx(sum(perplexities) / 3)
    assert found["spread"]["perplexity"] > 0
    assert "spread" not in single


def test_several_seeds_by_rungs_and_through_a_stop(folder: Path, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    work = TrialWork(folder, stop, goal=0.5, seeds=2)
    while not (folder / "replicates/1/spec.yaml").exists():
        assert work.advance() is None
    stop.touch()
    assert work.advance() is not None
    stop.unlink()
    rung = finish(TrialWork(folder, stop, goal=0.5, seeds=2))
    assert (rung["state"], rung["tokens"]) == ("rung", 2048)
    assert rung["spread"]["perplexity"] > 0
    found = finish(TrialWork(folder, stop, seeds=2))
    assert found["metrics"]["perplexity"] < rung["metrics"]["perplexity"]
