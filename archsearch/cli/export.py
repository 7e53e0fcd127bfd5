"""The command `export`."""

from __future__ import annotations

from collections.abc import Mapping
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
    how = "a class of transformers" if written.native else "with its own code (trust_remote_code=True)"
    print(f"{out}: {written.name}, {how}")
    for note in written.notes:
        print(f"note: {note}")
    if written.passed_over:
        print("not as one of these:")
    for why, classes in _grouped(written.passed_over).items():
        print(f"  {', '.join(classes)}: {why}")


def _grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the model types that it keeps out."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found
