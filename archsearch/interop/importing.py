"""transformers models and folders -> specs and models."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from archsearch.compiler.model import LanguageModel
from archsearch.interop.blueprint import Blueprint
from archsearch.interop.families import family_of
from archsearch.interop.returning import REMOTE, register, remote_blueprint, with_own_spec
from archsearch.interop.weights import fill, gather, unfilled
from archsearch.mixers.kernels import Mode
from archsearch.spec.errors import SpecError, quoted
from archsearch.spec.loading import load_spec, to_yaml
from archsearch.spec.model import ModelSpec

SPEC, WEIGHTS = "spec.yaml", "model.safetensors"


def from_transformers(
    hf_model: Any, ignore: Collection[str] = (), kernels: Mode = "auto"
) -> tuple[ModelSpec, LanguageModel]:
    """A causal language model of transformers as a spec, and as a model with copies of its weights.

    ignore: config fields that may be disregarded though nothing here knows them. Raises `SpecError` where
    the family, a field of the config or a weight has no counterpart here.
    """
    blueprint = plan(hf_model.config, ignore)
    spec = blueprint.spec()
    model = unfilled(spec, str(hf_model.device), kernels)
    with torch.no_grad():
        weights = gather(blueprint.rules, dict(hf_model.state_dict()), model)
    return spec, fill(model, weights)


def plan(config: Any, ignore: Collection[str] = ()) -> Blueprint:
    """Spec values and weight rules of a transformers config, or of its part for text. Raises `SpecError`."""
    if config.model_type == REMOTE:
        return remote_blueprint(config)
    config = config.get_text_config()
    return with_own_spec(family_of(config.model_type).blueprint(config, ignore), config)


def import_folder(source: Path, out: Path, ignore: Collection[str] = ()) -> ModelSpec:
    """Write OUT/spec.yaml, and OUT/model.safetensors where `source` is a folder with weights.

    source: a folder of transformers' `save_pretrained`, or a config.json alone. Raises `SpecError`, also
    where OUT holds a model already: it may be the source.
    """
    from transformers import AutoConfig

    if not source.exists():
        raise SpecError(f"{source}: no such file or folder")
    for name in (SPEC, WEIGHTS):
        if (out / name).exists():
            raise SpecError(f"{out / name}: is there already; give another --out")
    register()
    config = _or_refuse(source, lambda: AutoConfig.from_pretrained(source, local_files_only=True))
    blueprint = plan(config, ignore)
    spec = blueprint.spec()
    weights = None
    if source.is_dir() and any(file.suffix in (".safetensors", ".bin") for file in source.iterdir()):
        weights = gather(blueprint.rules, _held(source), unfilled(spec))
    out.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        # Whole or not at all, also where this is stopped half-way.
        partial = out / f"{WEIGHTS}.partial"
        save_file(weights, partial)
        partial.replace(out / WEIGHTS)
    (out / SPEC).write_text(to_yaml(spec))
    return spec


def load_model(folder: str | Path, device: str = "cpu", kernels: Mode = "auto") -> LanguageModel:
    """The model of an imported folder, with its weights. Raises `SpecError`."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise SpecError(f"{folder}: no imported model (expected {SPEC} and {WEIGHTS} in it)")
    model = unfilled(load_spec(folder / SPEC), device, kernels)
    return fill(model, load_file(folder / WEIGHTS, device=device))


def _held(source: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, by the names of transformers' modules: those that rules use.

    transformers reads them, since older checkpoints have other names and experts in other pieces.
    """
    from transformers import AutoModelForCausalLM

    def read() -> Any:
        load = AutoModelForCausalLM.from_pretrained
        return load(source, dtype="auto", local_files_only=True, output_loading_info=True)

    model, report = _or_refuse(source, read)
    for what in ("missing", "unexpected"):
        if report[f"{what}_keys"]:
            raise SpecError(f"{source}: {what} weights: {quoted(sorted(report[f'{what}_keys'])[:4])}")
    return dict(model.state_dict())


def _or_refuse(source: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # whatever transformers makes of a file that is none of its own
        said = " ".join(str(error).split())
        raise SpecError(f"{source}: transformers cannot read it: {said}") from error
