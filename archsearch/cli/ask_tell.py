"""Commands for trials that run elsewhere: ask, tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

NO_MORE = 1
"""Exit code of `ask` when there is no further candidate."""


def ask(
    space: Annotated[Path, typer.Argument(help="A search space (YAML).")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: results/NAME.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; default: the space's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print the next candidate, an experiment file, for training elsewhere. `tell` records what it scored.

    Exit code 1: there is no further candidate.
    """
    from archsearch.search.ask_tell import ask as next_candidate
    from archsearch.search.space import load_space

    loaded = load_space(space)
    folder = out or Path("results") / loaded.name
    found = next_candidate(loaded, folder, trials)
    if found is None:
        print(f"{folder}: no further candidate (--trials asks for more)", file=sys.stderr)
        raise typer.Exit(NO_MORE)
    if as_json:
        from archsearch.experiment import load_experiment

        told = {"trial": found.trial, "spec": str(found.spec), "run": str(folder)}
        print(json.dumps(told | {"experiment": load_experiment(found.spec).dump()}))
    else:
        print(f"# trial {found.trial} of {folder}\n{found.spec.read_text()}", end="")


def tell(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    trial: Annotated[str, typer.Argument(help="The trial's id, as `ask` says it.")],
    values: Annotated[
        Path | None, typer.Argument(help="Scores (JSON): a number for each objective. `-` reads stdin.")
    ] = None,
    failed: Annotated[
        str | None,
        typer.Option(
            help="The trial failed, of this cause. `out of memory` and `non-finite loss` tell the sampler "
            "that the candidate is bad; it learns nothing from others."
        ),
    ] = None,
    message: Annotated[str, typer.Option(help="More about the cause.")] = "",
    seconds: Annotated[float | None, typer.Option(min=0, help="The trial's own work.")] = None,
) -> None:
    """Record what a candidate of `ask` scored, or that it failed."""
    from archsearch.search.ask_tell import tell as record
    from archsearch.search.ask_tell import tell_failed

    if (values is None) == (failed is None):
        raise ValueError("tell: expected either a file of scores or --failed CAUSE")
    if failed is not None:
        event = tell_failed(run, trial, {"kind": failed, "message": message}, seconds)
    else:
        assert values is not None
        event = record(run, trial, _scores(values), seconds)
    told = ", ".join(f"{name} {value:g}" for name, value in event["values"].items())
    print(f"trial {trial}: {event['state']}{f' ({told})' if told else ''}")


def _scores(path: Path) -> dict[str, Any]:
    name = "stdin" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        found = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None
    except _Twice as twice:
        raise ValueError(f"{name}: {twice} is given twice") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{name}: not JSON; expected an object such as {{'recall': 0.9}}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected an object such as {{'recall': 0.9}}")
    return found


class _Twice(Exception):
    """A key that an object holds twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found
