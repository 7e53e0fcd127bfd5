"""What can be exported: a trained run, a trial of a sweep, a run's checkpoint, an imported model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from archsearch.compiler import LanguageModel, compile_model
from archsearch.experiment import Experiment, load_experiment
from archsearch.experiment.run import CHECKPOINT, WEIGHTS, load_trained
from archsearch.interop.importing import SPEC, load_model
from archsearch.interop.importing import WEIGHTS as IMPORTED
from archsearch.spec.errors import SpecError
from archsearch.training import checkpoint


@dataclass(frozen=True)
class Origin:
    """A model, and what is known of how it came about.

    experiment: what it was trained for; None for an imported model. steps: training steps that it has taken.
    metrics: its held-out scores, as `archsearch.evaluation.score.evaluate` names them.
    """

    model: LanguageModel
    experiment: Experiment | None = None
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def load_origin(path: Path) -> Origin:
    """path: a folder, or one of the files below in it. Raises `SpecError`."""
    readers = {WEIGHTS: _trained, IMPORTED: _imported, CHECKPOINT: _unfinished}
    if not path.exists():
        raise SpecError(f"{path}: no such file or folder")
    folder, names = (path, list(readers)) if path.is_dir() else (path.parent, [path.name])
    for name in names:
        if name in readers and (folder / name).exists() and (folder / SPEC).exists():
            return readers[name](folder)
    if (path / "study.jsonl").exists():
        raise SpecError(f"{path}: a sweep; give the folder of one of its trials")
    raise SpecError(f"{path}: nothing to export (expected {SPEC} and one of {', '.join(readers)} in it)")


def _trained(folder: Path) -> Origin:
    experiment = load_experiment(folder / SPEC)
    model = load_trained(experiment, folder / WEIGHTS)
    return Origin(model, experiment, experiment.training.steps, _scores(folder / "metrics.jsonl"))


def _unfinished(folder: Path) -> Origin:
    experiment = load_experiment(folder / SPEC)
    state = checkpoint.load(folder / CHECKPOINT, "cpu")
    assert state is not None
    model = compile_model(experiment.arch)
    model.load_state_dict(state["model"])
    return Origin(model, experiment, state["step"])


def _imported(folder: Path) -> Origin:
    return Origin(load_model(folder))


def _scores(curve: Path) -> dict[str, float]:
    """Those of the last evaluation, if there was one."""
    lines = curve.read_text().splitlines() if curve.exists() else []
    return json.loads(lines[-1]).get("evaluation", {}) if lines else {}
