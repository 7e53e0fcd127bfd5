"""What a trial is given, and how many trials fit."""

from pathlib import Path
from typing import Any

import pytest

from archsearch.search import place
from archsearch.search.driver import run_sweep
from archsearch.search.settings import Resources
from archsearch.search.space import SearchSpace, load_space
from archsearch.spec import SpecError
from archsearch.spec.errors import validate
from archsearch.study import Study

TINY = (Path(__file__).parent / "spaces/tiny.yaml").read_text()


def space(tmp_path: Path, resources: str) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(TINY.replace("{concurrent: 2}", resources))
    return load_space(path)


@pytest.mark.parametrize(
    ("resources", "fit"),
    [
        ("{}", 12),
        ("{cpu: 5}", 2),
        ("{cpu: 99}", 1),
        ("{gpu: 0.25}", 8),
        ("{gpu: 0.3}", 6),
        ("{gpu: 1}", 2),
        ("{gpu: 0.1}", 12),
        ("{gpu: 0.5, concurrent: 3}", 3),
        ("{gpu: 0.5, concurrent: 30}", 4),
        ("{cpu: 3, concurrent: 30}", 30),
        ("{workers: 2}", 6),
        ("{workers: 24}", 1),
        ("{gpu: 2}", 1),
        ("{workers: 2, gpu: 1}", 1),
    ],
)
def test_trials_at_once_fit_cores_and_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: str, fit: int
) -> None:
    monkeypatch.setattr(place, "cpu_count", lambda: 12)
    monkeypatch.setattr(place, "gpu_count", lambda: 2)
    assert place.this_machine(space(tmp_path, resources)).concurrency == fit


def test_what_this_machine_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "gpu_count", lambda: 0)
    with pytest.raises(SpecError, match=r":15:13: resources.gpu: 0.5 GPUs a trial; this machine has none"):
        place.this_machine(space(tmp_path, "{gpu: 0.5}"))
    monkeypatch.setattr(place, "gpu_count", lambda: 3)
    with pytest.raises(SpecError, match=r"resources.gpu: 4 GPUs a trial; this machine has 3"):
        place.this_machine(space(tmp_path, "{workers: 4, gpu: 1}"))
    with pytest.raises(SpecError, match=r"resources.custom.tpu: this machine alone has no custom resources"):
        place.this_machine(space(tmp_path, "{custom: {tpu: 1}}"))


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("0, 1", 2), ("", 0), ("-1", 0), ("GPU-8932f937,GPU-1", 2)]
)
def test_gpus_hidden_from_the_process_do_not_count(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert place.gpu_count() == count


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"gpu": 1.5}, "a share of one or a whole number, found 1.5"),
        ({"gpu": -1}, "must be at least 0.0, found -1"),
        ({"gpu": 0.0001}, "expected at least 0.001"),
        ({"gpu": True}, "gpu"),
        ({"custom": {"GPU": 1}}, "cpu and gpu have their own"),
        ({"custom": {"big": 0}}, "must be"),
        ({"custom": {"big": 1.5}}, "a share of one or a whole number"),
        ({"cpu": 0.5}, "cpu"),
        ({"workers": 2, "gpu": 2}, "expected 0 or 1, for each of the 2 workers, found 2"),
        ({"workers": 2, "gpu": 0.5}, "expected 0 or 1, for each of the 2 workers, found 0.5"),
    ],
)
def test_amounts_that_no_node_can_give_are_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(Resources, value)


def test_a_trial_asks_ray_for_its_share() -> None:
    assert Resources().bundle == {"CPU": 1.0}
    assert Resources().device == "cpu"
    asked = validate(Resources, {"cpu": 2, "gpu": 0.25, "custom": {"fast": 0.5}})
    assert asked.bundle == asked.seat == {"CPU": 2.0, "GPU": 0.25, "fast": 0.5}
    assert asked.device == "cuda"
    several = Resources(gpu=3)
    assert (several.processes, several.bundle) == (3, {"CPU": 1.0, "GPU": 1.0})
    assert "GPU" not in several.seat


@pytest.mark.slow
def test_trials_with_a_gpu_train_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is told of a GPU. Where torch knows none, trials say so: they were to be trained there."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(place, "cpu_count", lambda: 4)
    run = tmp_path / "run"
    result = run_sweep(space(tmp_path, "{gpu: 0.5}"), run)
    study = Study.read(run)
    assert study.header.concurrency == 2
    if torch.cuda.is_available():
        assert result.counts == {"complete": 4}
    else:
        assert result.counts == {"failed": 4}
        assert all("CUDA" in trial.cause["message"] for trial in study.trials.values() if trial.cause)
