"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from archsearch.cli.convert import hush
from archsearch.spec.errors import nearest

FORMATS = ("transformers",)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A trained run, a trial of a sweep, a checkpoint.pt, or an imported model.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    format: Annotated[str, typer.Option(help="What it is written for: transformers.")] = "transformers",
    license: Annotated[str, typer.Option(help="Licence in the model card, such as apache-2.0.")] = "unknown",
) -> None:
    """Write a model for transformers: as one of its classes, or with its own code where none fits."""
    if format not in FORMATS:
        raise ValueError(f"--format: unknown format {format!r}{nearest(format, FORMATS)}")
    from archsearch.interop.exporting import export_path

    hush()
    written = export_path(source, out, license)
    if written.native:
        print(f"{out}: {written.name}, a class of transformers")
    else:
        print(f"{out}: {written.name}, with its own code (trust_remote_code=True); no class fits:")
    for reason in written.passed_over:
        print(f"  {reason}")
