"""Models -> folders that transformers loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from archsearch.compiler.model import LanguageModel
from archsearch.interop import native
from archsearch.interop.card import model_card
from archsearch.interop.origin import Origin, load_origin
from archsearch.interop.remote.writing import CLASS, write_remote
from archsearch.interop.tokenizer_files import write_tokenizer
from archsearch.spec.errors import SpecError
from archsearch.spec.vocabulary import END_OF_DOCUMENT


@dataclass(frozen=True)
class Exported:
    """name: of transformers' class. native: whether transformers has it by itself. notes: what is not quite
    as the spec says. passed_over: the model types that an export prefers to this one, and why each does not
    fit.
    """

    name: str
    native: bool
    notes: tuple[str, ...]
    passed_over: Mapping[str, str]


def to_transformers(model: LanguageModel, directory: str | Path) -> str:
    """Write the model as a folder for transformers' `from_pretrained`; the name of its class there.

    That is a class of transformers where one computes the same function, and otherwise one whose code lies
    in the folder (load it with `trust_remote_code=True`). Raises `SpecError` where the folder holds anything.
    """
    return export(Origin(model), Path(directory)).name


def export_path(source: Path, folder: Path, license: str = "unknown") -> Exported:
    """`to_transformers` of a run, a trial, a checkpoint or an imported model. Raises `SpecError`."""
    return export(load_origin(source), folder, license)


def export(origin: Origin, folder: Path, license: str = "unknown") -> Exported:
    """license: what the model's card says. Raises `SpecError`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: is there already; give a new folder")
    model = origin.model
    match, passed_over = native.find(model.spec, model.embedding.weight.element_size())
    name = CLASS if match is None else match.name
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if match is not None:
        native.write_native(model, match, partial)
    else:
        write_remote(model, partial)
    if model.spec.tokenizer is not None:
        positions = model.spec.embedding.positions
        write_tokenizer(model.spec.tokenizer, partial, positions.learned if positions else None)
    _write_generation_config(model, partial)
    (partial / "README.md").write_text(model_card(origin, name, match is not None, license))
    partial.replace(folder)
    notes = match.notes if match is not None else ()
    return Exported(name, match is not None, notes, passed_over)


def _write_generation_config(model: LanguageModel, folder: Path) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig()
    if model.spec.tokenizer is not None:
        config.bos_token_id = config.eos_token_id = config.pad_token_id = END_OF_DOCUMENT
    config.save_pretrained(folder)
