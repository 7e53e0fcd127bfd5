"""Commands that run one experiment: train, eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from archsearch.spec.errors import SpecError

if TYPE_CHECKING:
    from archsearch.experiment import Experiment
    from archsearch.experiment.run import ExperimentRun

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(help="Torch threads; default: every core.")]


def train(
    path: Annotated[Path, typer.Argument(help="An experiment, or a model spec (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: results/NAME-HASH.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training budget, such as 4M.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data order.")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a model and score it. The same command again continues an unfinished run."""
    from archsearch.experiment import load_experiment

    asked = {"tokens": tokens, "lr": lr, "seed": seed}
    experiment = load_experiment(path).with_training(**{k: v for k, v in asked.items() if v is not None})
    folder = out or Path("results") / f"{experiment.name}-{experiment.hash[:8]}"
    _claim(folder, experiment)

    from archsearch.experiment.run import ExperimentRun

    _use(threads, device)
    run = ExperimentRun(experiment, folder, device)
    try:
        _train_with_bar(run, quiet=as_json)
    except KeyboardInterrupt:
        run.checkpoint()
        raise
    metrics = run.evaluate()
    _print_metrics(metrics, as_json, title=f"{experiment.name}: held-out scores ({folder})")


def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="A trained run or trial: spec.yaml and weights.safetensors.")
    ],
    split: Annotated[str, typer.Option(help="Held-out part: validation or test.")] = "test",
    contexts: Annotated[str | None, typer.Option(help="Lengths for text, such as 128,512.")] = None,
    recall_contexts: Annotated[str | None, typer.Option(help="Lengths for recall, such as 32,64.")] = None,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained model on held-out text and recall tasks, at any context lengths."""
    from archsearch.experiment import load_experiment

    weights = folder / "weights.safetensors"
    if not (folder / "spec.yaml").exists() or not weights.exists():
        raise ValueError(f"{folder}: no trained model (expected spec.yaml and weights.safetensors in it)")
    changes: dict[str, Any] = {"split": split}
    if contexts is not None:
        changes["contexts"] = _lengths("--contexts", contexts)
    if recall_contexts is not None:
        changes["recall_contexts"] = _lengths("--recall-contexts", recall_contexts)
    experiment = load_experiment(folder / "spec.yaml").with_evaluation(**changes)

    from archsearch.experiment.run import load_trained, score

    _use(threads, device)
    model = load_trained(experiment, weights, device)
    _print_metrics(score(model, experiment, device), as_json, title=f"{folder} on the {split} split")


def _claim(folder: Path, experiment: Experiment) -> None:
    """Note in the folder what is trained there; refuse a folder that holds another experiment."""
    from archsearch.experiment import load_experiment
    from archsearch.spec import to_yaml

    noted = folder / "spec.yaml"
    if noted.exists():
        if load_experiment(noted).hash != experiment.hash:
            raise SpecError(f"{noted}:1:1: : another experiment is in this folder; give another --out")
        return
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(to_yaml(experiment.dump()))


def _use(threads: int | None, device: str) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    try:
        available = torch.device(device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        raise ValueError(f"--device: unknown device {device!r}; expected cpu or cuda") from None
    if not available:
        raise ValueError(f"--device: {device} is not available here; expected cpu")


def _train_with_bar(run: ExperimentRun, quiet: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[b]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps  loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(run.experiment.name, total=run.steps, completed=run.step, loss="-")
        while not run.finished:
            report = run.advance(max(1, run.steps // 200))
            if report is not None:
                bar.update(task, completed=run.step, loss=f"{report.loss:.3f}")


def _print_metrics(metrics: dict[str, float], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(metrics))
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(metrics):
        table.add_row(name, f"{metrics[name]:.4f}")
    Console().print(table)


def _lengths(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option}: expected whole numbers such as 128,512, found {text!r}") from None
