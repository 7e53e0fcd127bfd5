"""Commands that read and explain: validate, show, schema, ls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from archsearch.spec.cost import ITEMSIZE, ModelCost
from archsearch.spec.errors import SpecError, nearest
from archsearch.spec.model import ModelSpec
from archsearch.spec.quantities import count_text

if TYPE_CHECKING:
    from archsearch.experiment import Experiment

SPACE_SECTIONS = {"objectives", "constraints", "search", "resources"}


def validate(
    paths: Annotated[list[Path], typer.Argument(help="Model specs, experiments or search spaces (YAML).")],
) -> None:
    """Check files without building anything; one line each, exit code 2 if one is wrong."""
    wrong = False
    for path in paths:
        try:
            print(f"{path}: {_describe(path)}")
        except SpecError as error:
            wrong = True
            print(error, file=sys.stderr)
    raise typer.Exit(2 if wrong else 0)


def show(
    path: Annotated[Path, typer.Argument(help="A model spec or an experiment (YAML).")],
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Context lengths: several times, or as in 4k,32k (k is 1,024). [default: 4k,32k,256k]"
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of activations and caches.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    resolved: Annotated[bool, typer.Option(help="Print the spec with every default written out.")] = False,
    kernels: Annotated[
        str | None, typer.Option(help="Say which kernels a model on this device would use (loads torch).")
    ] = None,
) -> None:
    """Layers, parameters, FLOPs and state of a model, from its spec alone."""
    from archsearch.cli.summary import as_json as summary_json
    from archsearch.cli.summary import default_contexts, parse_contexts, print_summary, training_line
    from archsearch.spec import to_yaml

    spec, experiment = _model_of(path)
    contexts = parse_contexts(context) if context else default_contexts(spec)
    costs = {tokens: _cost_or_refuse(spec, tokens, dtype) for tokens in contexts}
    if as_json:
        print(json.dumps(summary_json(spec, costs, dtype)))
    elif resolved:
        print(to_yaml(spec.resolved()), end="")
    else:
        print_summary(spec, costs, dtype)
        if experiment is not None:
            print(training_line(experiment))
    if kernels is not None:
        _print_kernels(spec, kernels)


def schema(
    of: Annotated[str, typer.Argument(help="model, or space (experiments too).")] = "model",
) -> None:
    """Print a JSON Schema for editors: of model specs, or of search spaces and experiments."""
    from archsearch.search.schema import space_schema
    from archsearch.spec.schema import json_schema

    kinds = {"model": json_schema, "space": space_schema}
    if of not in kinds:
        raise ValueError(f"schema: unknown kind of file {of!r}{nearest(of, kinds)}")
    print(json.dumps(kinds[of](), indent=2))


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where runs are kept.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """List the studies under a folder: how far they are and the best they found."""
    from archsearch.study import Study

    runs = sorted(p.parent for p in folder.glob("**/study.jsonl")) if folder.is_dir() else []
    rows = [_run_row(run, Study.read(run)) for run in runs]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print(f"no runs under {folder}; `archsearch sweep SPACE` makes one")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "status", "trials", "front", "best"):
        table.add_column(name, overflow="fold")
    for row in rows:
        best = ", ".join(f"{name} {value:.4g}" for name, value in row["best"].items())
        table.add_row(row["run"], row["status"], f"{row['done']}/{row['trials']}", str(row["front"]), best)
    Console().print(table)


def _describe(path: Path) -> str:
    """What a valid file is. Raises `SpecError`."""
    from archsearch.spec.loading import spec_from
    from archsearch.spec.source import Source

    source = Source.read(path)
    value = source.value
    if _is_space(value):
        from archsearch.search.space import load_space

        space = load_space(path)
        return f"ok: search space {space.name!r}, {space.search.trials} trials"
    if isinstance(value, dict) and "arch" in value:
        from archsearch.experiment import load_experiment

        return f"ok: experiment, {_model_line(load_experiment(path).arch)}"
    return f"ok: {_model_line(spec_from(source))}"


def _model_of(path: Path) -> tuple[ModelSpec, Experiment | None]:
    """The model of a file, and the experiment that it is a part of. Raises `SpecError`."""
    from archsearch.experiment import load_experiment
    from archsearch.spec.loading import spec_from
    from archsearch.spec.source import Source

    source = Source.read(path)
    value = source.value
    if _is_space(value):
        raise source.at(
            (1, 1), (), f"a search space; `archsearch sweep {path} --dry-run` shows what is in it"
        )
    if isinstance(value, dict) and "arch" in value:
        experiment = load_experiment(path)
        return experiment.arch, experiment
    return spec_from(source), None


def _is_space(value: Any) -> bool:
    return isinstance(value, dict) and bool(SPACE_SECTIONS & value.keys() or _has_hole(value))


def _model_line(spec: ModelSpec) -> str:
    from archsearch.spec import model_cost

    params = count_text(model_cost(spec, context=1).total.params)
    layers = f"{len(spec.nodes)} layer{'s' * (len(spec.nodes) != 1)}"
    return f"model {spec.name!r}, {layers}, {params} parameters"


def _has_hole(value: Any) -> bool:
    if isinstance(value, dict):
        return any(key.startswith("$") or _has_hole(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_hole, value))


def _cost_or_refuse(spec: ModelSpec, context: int, dtype: str) -> ModelCost:
    from archsearch.spec import model_cost

    if dtype not in ITEMSIZE:
        raise ValueError(f"--dtype: unknown dtype {dtype!r}{nearest(dtype, ITEMSIZE)}")
    try:
        return model_cost(spec, context, dtype)
    except ValueError as error:
        raise ValueError(f"--context: {error}") from None


def _print_kernels(spec: ModelSpec, device: str) -> None:
    """A line for each kernel that each layer asks for."""
    import torch

    from archsearch.compiler.model import LanguageModel
    from archsearch.mixers.kernels import Choice, choose_kernels

    with torch.device("meta"):
        model = LanguageModel(spec, choose_kernels("auto", device))
    for path, block in model.blocks.items():
        if block.node.branches:
            continue
        asked = [c for module in block.modules() for c in vars(module).values() if isinstance(c, Choice)]
        for choice in dict.fromkeys(asked):
            print(f"{path}: {choice.operation}: {choice.name} ({choice.why})")


def _run_row(run: Path, study: Any) -> dict[str, Any]:
    best = {}
    for name in study.objectives:
        trial = study.best(name)
        if trial is not None:
            best[name] = trial.values[name]
    return {
        "run": str(run),
        "status": study.status,
        "done": len(study.ended),
        "trials": study.total,
        "front": len(study.front()),
        "best": best,
    }
