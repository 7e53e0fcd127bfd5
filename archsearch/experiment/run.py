"""One run of an experiment, in a folder of its own, that continues where it was stopped.

FOLDER/metrics.jsonl        the learning curve, one JSON object a line; the last line holds the scores
FOLDER/checkpoint.pt        while training: everything the next step depends on
FOLDER/weights.safetensors  once trained
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from archsearch.compiler import LanguageModel, compile_model
from archsearch.data import MixtureStream
from archsearch.evaluation.score import evaluate
from archsearch.evaluation.spec import EvaluationSpec
from archsearch.experiment.spec import Experiment
from archsearch.training import checkpoint
from archsearch.training.loop import StepReport, Trainer
from archsearch.training.parallel import ShardedTrainer, Share

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.safetensors"

GLANCE = 4
"""By how much less held-out data half-trained trials are scored."""

CURVE_POINTS = 100
"""Lines of a learning curve, about."""


class ExperimentRun:
    """Trains and scores one experiment.

    share: this process's part of it, where several train together, each in a folder of its own.
    step, steps, tokens: how far it is. seconds: time spent training and scoring, over all sessions.
    """

    def __init__(self, experiment: Experiment, folder: Path, device: str = "cpu", share: Share | None = None):
        self.experiment = experiment
        self.folder = folder
        self.device = device
        training = experiment.training
        # Denormal numbers (the tails of decays) cost a CPU a hundred times a normal one.
        torch.set_flush_denormal(True)
        self.model: LanguageModel = compile_model(experiment.arch, device=device, seed=training.seed)
        self.stream = MixtureStream(
            experiment.data,
            context=training.context,
            tokens_per_step=training.tokens_per_step,
            seed=training.seed,
        )
        if share is None:
            self.trainer = Trainer(self.model, self.stream, training, device)
        else:
            self.trainer = ShardedTrainer(self.model, self.stream, training, device, share=share)
        self.seconds = 0.0
        self.steps = training.steps
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def tokens(self) -> int:
        return self.step * self.experiment.training.tokens_per_step

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def advance(self, steps: int) -> StepReport | None:
        """Train up to `steps` more steps; the last one's report. Raises `TrainingFailed`."""
        report = None
        every = max(1, self.steps // CURVE_POINTS)
        for _ in range(min(steps, self.steps - self.step)):
            began = time.perf_counter()
            report = self.trainer.train_step()
            self.seconds += time.perf_counter() - began
            if report.step % every == 0 or report.step in (1, self.steps):
                self._log(self._point(report))
            if report.step % self.experiment.training.checkpoint_every == 0 and not self.finished:
                self.checkpoint()
        return report

    def checkpoint(self) -> None:
        """Keep everything that the next step depends on."""
        state = self.trainer.state() | {"seconds": self.seconds}
        checkpoint.save_atomically(state, self.folder / CHECKPOINT)

    def evaluate(self) -> dict[str, float]:
        """Score the model as the experiment says; keep the scores, and the weights if training is over."""
        began = time.perf_counter()
        recorded = {} if self.trainer.passes is None else {"recorded passes": self.trainer.passes.told()}
        metrics = self._score(self.experiment.evaluation)
        self.seconds += time.perf_counter() - began
        if self.finished:
            self._keep_weights()
        point = {"evaluation": metrics, "step": self.step, "seconds": self.seconds, "time": time.time()}
        self._log(point | recorded)
        if self.finished:
            # Last: a kill before this line finds the weights or the checkpoint, and trains nothing twice.
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return metrics

    def glance(self) -> dict[str, float]:
        """Scores on a quarter of the held-out data: what trials are compared by while they train."""
        began = time.perf_counter()
        spec = self.experiment.evaluation
        less = spec.model_copy(
            update={
                "tokens": max(spec.tokens // GLANCE, max(self.experiment.contexts)),
                "examples": max(1, spec.examples // GLANCE),
            }
        )
        metrics = self._score(less)
        self.seconds += time.perf_counter() - began
        return metrics

    def data_report(self) -> dict[str, dict[str, float]]:
        """Tokens and epochs of each source so far."""
        tokens = {name: float(count) for name, count in self.stream.counts(self.step).items()}
        return {"tokens": tokens, "epochs": self.stream.epochs(self.step)}

    def close(self) -> None:
        """Free the memory; the folder stays."""
        del self.model, self.trainer, self.stream
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _score(self, spec: EvaluationSpec) -> dict[str, float]:
        if self.trainer.passes is not None:
            self.trainer.passes.make_room()
        return score(self.model, self.experiment, self.device, spec)

    def _keep_weights(self) -> None:
        path = self.folder / WEIGHTS
        partial = path.with_name(path.name + ".partial")
        about = {"spec_hash": self.experiment.arch.hash, "seconds": repr(self.seconds)}
        save_model(self.model, str(partial), metadata=about)
        partial.replace(path)

    def _resume(self) -> None:
        state = checkpoint.load(self.folder / CHECKPOINT, self.device)
        if (self.folder / WEIGHTS).exists():
            self._take_trained(self.folder / WEIGHTS)
        elif state is not None:
            self.trainer.restore(state)
            self.seconds = state["seconds"]
        self._trim_curve()

    def _take_trained(self, path: Path) -> None:
        """The end of training: what is left to do is to score."""
        load_model(self.model, str(path), device=self.device)
        self.trainer.step = self.steps
        with safe_open(str(path), framework="pt") as file:
            self.seconds = float((file.metadata() or {}).get("seconds", 0.0))

    def _trim_curve(self) -> None:
        """Drop points after the checkpoint: those steps will be taken again."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines(keepends=True) if self._is_past(line)]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept))
        partial.replace(path)

    def _is_past(self, line: str) -> bool:
        try:
            point = json.loads(line)
        except ValueError:
            return False  # a line torn by a kill
        return point.get("step", self.step + 1) <= self.step and "evaluation" not in point

    def _point(self, report: StepReport) -> dict[str, Any]:
        return {
            "step": report.step,
            "steps": self.steps,
            "tokens": self.tokens,
            "loss": round(report.loss, 6),
            "losses": {name: round(loss, 6) for name, loss in report.losses.items()},
            "lr": report.lr,
            "seconds": round(self.seconds, 3),
            "time": round(time.time(), 3),
        }

    def _log(self, point: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(point) + "\n")


def score(
    model: LanguageModel, experiment: Experiment, device: str = "cpu", spec: EvaluationSpec | None = None
) -> dict[str, float]:
    """Every metric that the experiment's evaluation asks for, or `spec` in its place."""
    return evaluate(
        model,
        experiment.data,
        spec or experiment.evaluation,
        contexts=experiment.contexts,
        domains=experiment.domains,
        recall_tasks=experiment.recall_tasks,
        device=device,
    )


def load_trained(experiment: Experiment, weights: Path, device: str = "cpu") -> LanguageModel:
    """The experiment's model with the weights that a run kept."""
    model = compile_model(experiment.arch, device=device)
    load_model(model, str(weights), device=device)
    return model
