"""The command that trains a search's best points again: promote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from archsearch.search.promote import Plan, Request


def promote(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    top: Annotated[int, typer.Option(min=1, help="Points of the front, spread over it.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="New seeds a point.")] = 3,
    scale: Annotated[str, typer.Option(help="Larger models, such as width=2,depth=2.")] = "width=1,depth=1",
    tokens: Annotated[
        str | None, typer.Option(help="Training budget, such as 4M; default: as searched.")
    ] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Also train this: a trial of the run, or a file. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Its own folder; default: RUN-promoted.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be trained.")] = False,
    no_dashboard: Annotated[bool, typer.Option(help="Plain lines instead of the dashboard.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train the front again with new seeds, longer or larger, and say which differences are real.

    Scores are those of the test split. The same command again continues an unfinished promotion; more
    seeds may be asked for later.
    """
    from archsearch.search.promote import Request, plan_promotion, write_results
    from archsearch.search.scaling import parse_scale

    width, depth = parse_scale(scale)
    request = Request(
        str(run), top, seeds, width, depth, _count(tokens), tuple(dict.fromkeys(baseline or ()))
    )
    folder = out or _folder(run, request)
    plan = plan_promotion(request, folder)
    _print_plan(plan)
    if dry_run:
        return

    from archsearch.search.driver import run_sweep
    from archsearch.study import Study
    from archsearch.ui.live import open_reporter
    from archsearch.ui.promotion import print_promotion
    from archsearch.ui.report import write_report

    result = run_sweep(
        plan.space(),
        folder,
        open_reporter=lambda path: open_reporter(Study.read(path), plain=no_dashboard or None),
    )
    if result.exit_code == 130:
        print(f"interrupted; the same command continues {folder}", file=sys.stderr)
        raise typer.Exit(result.exit_code)
    found = write_results(plan, folder)
    write_report(folder)
    if as_json:
        print(json.dumps(found))
    else:
        print_promotion(found)
        print(f"results: {folder / 'promotion.json'}; report: {folder / 'report.html'}")
    raise typer.Exit(result.exit_code)


def _print_plan(plan: Plan) -> None:
    """One line a point on stderr: stdout may be read by a program."""
    from archsearch.search.scaling import describe

    for name, point in plan.points.items():
        kind = " (baseline)" if point.baseline else ""
        training = point.experiment.training
        print(
            f"{name}{kind}: {describe(point.experiment.arch)}, {training.tokens:,} tokens, "
            f"{len(plan.seeds)} seeds from {plan.first_seed}",
            file=sys.stderr,
        )


def _folder(run: Path, request: Request) -> Path:
    scale = f"-w{request.width:g}" * (request.width != 1) + f"-d{request.depth}" * (request.depth != 1)
    return run.with_name(f"{run.resolve().name}-promoted{scale}")


def _count(text: str | None) -> int | None:
    from archsearch.spec.quantities import parse_count

    if text is None:
        return None
    try:
        return int(parse_count(text))
    except ValueError as error:
        raise ValueError(f"--tokens: {error}") from None
