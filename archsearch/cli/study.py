"""Commands that work on a study: sweep, watch, report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="A run's folder.")]


def sweep(
    space: Annotated[Path, typer.Argument(help="A search space (YAML).")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; default: results/NAME.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; default: the space's.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the space's size and sample candidates.")] = False,
    no_dashboard: Annotated[bool, typer.Option(help="Plain lines instead of the dashboard.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Train on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="With --address: path or URI for trials' files that all nodes reach; default: --out."
        ),
    ] = None,
) -> None:
    """Search layouts and mixtures. The same command again continues an unfinished run."""
    from archsearch.search.space import load_space

    if storage is not None and address is None:
        raise ValueError("--storage: expected --address with it; without a cluster, files are kept in --out")
    loaded = load_space(space)
    if dry_run:
        from archsearch.search.dryrun import describe

        print(describe(loaded))
        return
    folder = out or Path("results") / loaded.name

    from archsearch.search.driver import Reporter, run_sweep
    from archsearch.study import Study
    from archsearch.ui.live import open_reporter
    from archsearch.ui.tracking import check_trackers, tracking

    check_trackers(loaded.search.log)

    @contextmanager
    def reporting(run: Path) -> Iterator[Reporter]:
        with (
            tracking(run, loaded.search.log),
            open_reporter(Study.read(run), plain=no_dashboard or None) as found,
        ):
            yield found

    result = run_sweep(
        loaded, folder, trials=trials, open_reporter=reporting, address=address, storage=storage
    )
    if result.exit_code != 130:
        from archsearch.ui.report import write_report

        write_report(folder)
        print(f"front: {result.front} trials in {folder / 'front'}; report: {folder / 'report.html'}")
    else:
        print(f"interrupted; the same command continues {folder}", file=sys.stderr)
    raise typer.Exit(result.exit_code)


def watch(run: Run, interval: Annotated[float, typer.Option(min=0.05, help="Seconds.")] = 0.5) -> None:
    """Show the dashboard of a run: one that another process works on, or a finished one."""
    from archsearch.ui.live import watch as follow

    follow(run, interval=interval)


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the run.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Also TensorBoard's event files, a trial each.")] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log new trials to: wandb, mlflow. Repeatable.")
    ] = None,
) -> None:
    """Write the front as PNG, HTML, CSV and Parquet."""
    from archsearch.ui.report import write_report
    from archsearch.ui.tracking import check_trackers
    from archsearch.ui.tracking import track as log_trials

    check_trackers(track or [])
    write_report(run, out)
    print(f"wrote {(out or run) / 'report.html'}, front.png, trials.csv and trials.parquet")
    if tensorboard:
        from archsearch.study import Study
        from archsearch.ui.tensorboard import FOLDER, write_tensorboard

        study = Study.read(run)
        study.read_curves()
        trials = write_tensorboard(study, (out or run) / FOLDER)
        print(f"wrote {trials} trials: tensorboard --logdir {(out or run) / FOLDER}")
    for name, trials in log_trials(run, track or []).items():
        print(f"logged {trials} new trials to {name}")
