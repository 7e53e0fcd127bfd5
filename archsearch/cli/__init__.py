"""The command line. Torch and ray are imported inside the commands that need them, never here.

Exit codes: 0 well; 1 the run failed; 2 the user's input is wrong; 3 finished, with failed trials;
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from archsearch.cli import ask_tell, convert, export, inspect, promote, study, train

app = typer.Typer(
    name="archsearch",
    help="Declarative architecture search for hybrid language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(inspect.validate)
app.command()(inspect.show)
app.command()(inspect.schema)
app.command()(train.train)
app.command("eval")(train.evaluate)
app.command()(study.sweep)
app.command()(study.watch)
app.command()(study.report)
app.command()(promote.promote)
app.command()(ask_tell.ask)
app.command()(ask_tell.tell)
app.command("ls")(inspect.list_runs)
app.command("import")(convert.import_model)
app.command()(export.export)

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main() -> NoReturn:
    """Run a command; every mistake ends in one line and an exit code."""
    # As Ctrl-C; a sweep's training handles both signals itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except KeyboardInterrupt:
        _leave_interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _leave_interrupted()
        raise
    except Exception as error:
        if os.environ.get("ARCHSEARCH_DEBUG"):
            raise
        sys.exit(_explain(error))
    sys.exit(0)


def _leave_interrupted() -> NoReturn:
    """Go, whatever signal comes meanwhile: Python would die of one that it meets on its way out."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(INTERRUPTED)


def _explain(error: Exception) -> int:
    """Say what went wrong in one line on stderr; the exit code that it deserves."""
    from archsearch.search.retries import SessionLost
    from archsearch.spec.errors import SpecError
    from archsearch.study import StudyError
    from archsearch.study.log import StudyWriteError
    from archsearch.training.errors import TrainingFailed

    text = " ".join(str(error).split())
    if isinstance(error, SpecError | StudyError | ValueError):
        print(text, file=sys.stderr)
        return WRONG_INPUT
    if isinstance(error, StudyWriteError):
        print(text, file=sys.stderr)
        return WRONG_INPUT if error.is_denied else FAILED
    if isinstance(error, SessionLost):
        print(text, file=sys.stderr)
        return FAILED
    if isinstance(error, TrainingFailed):
        print(f"training failed: {text}", file=sys.stderr)
        return FAILED
    name = type(error).__name__
    print(f"{name}: {text} (ARCHSEARCH_DEBUG=1 shows where)", file=sys.stderr)
    return FAILED
