"""Commands between archsearch and transformers: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_model(
    source: Annotated[Path, typer.Argument(help="A transformers model's folder, or a config.json alone.")],
    out: Annotated[Path, typer.Option(help="Folder for spec.yaml and the weights.")],
    ignore: Annotated[
        list[str] | None, typer.Option(help="A config field to disregard; may be given again.")
    ] = None,
) -> None:
    """Turn a transformers model into a spec, and its weights into the spec's model's."""
    from archsearch.interop import import_folder
    from archsearch.interop.importing import WEIGHTS
    from archsearch.spec import model_cost
    from archsearch.spec.quantities import count_text

    hush()
    spec = import_folder(source, out, ignore or ())
    params = count_text(model_cost(spec, context=1).total.params)
    held = "with its weights" if (out / WEIGHTS).exists() else "without weights"
    print(f"{out}: {spec.name!r}, {len(spec.nodes)} layers, {params} parameters, {held}")


def hush() -> None:
    """transformers talks while it loads; what matters is said here."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
