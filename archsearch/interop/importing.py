"""transformers models and folders -> specs and models."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from archsearch.compiler.model import LanguageModel
from archsearch.interop.blueprint import Blueprint
from archsearch.interop.families import family_of
from archsearch.interop.weights import fill, gather, unfilled
from archsearch.mixers.kernels import Mode
from archsearch.spec.errors import SpecError
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
    """Spec values and weight rules of a transformers config. Raises `SpecError`."""
    return family_of(config.model_type).blueprint(config, ignore)


def import_folder(source: Path, out: Path, ignore: Collection[str] = ()) -> ModelSpec:
    """Write OUT/spec.yaml, and OUT/model.safetensors where `source` is a folder with weights.

    source: a folder of transformers' `save_pretrained`, or a config.json alone. Raises `SpecError`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not source.exists():
        raise SpecError(f"{source}: no such file or folder")
    config = _or_refuse(source, lambda: AutoConfig.from_pretrained(source, local_files_only=True))
    blueprint = plan(config, ignore)
    spec = blueprint.spec()
    weights = None
    if source.is_dir() and any(source.glob("*.safetensors")):
        # transformers renames and packs what older checkpoints hold; its names are those that rules use.
        model = _or_refuse(
            source,
            lambda: AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True),
        )
        held = dict(model.state_dict())
        del model  # so that each tensor is freed once it is copied
        weights = gather(blueprint.rules, held, unfilled(spec))
    out.mkdir(parents=True, exist_ok=True)
    (out / SPEC).write_text(to_yaml(spec))
    if weights is not None:
        save_file(weights, out / WEIGHTS)
    return spec


def load_model(folder: str | Path, device: str = "cpu", kernels: Mode = "auto") -> LanguageModel:
    """The model of an imported folder, with its weights. Raises `SpecError`."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise SpecError(f"{folder}: no imported model (expected {SPEC} and {WEIGHTS} in it)")
    model = unfilled(load_spec(folder / SPEC), device, kernels)
    return fill(model, load_file(folder / WEIGHTS, device=device))


def _or_refuse(source: Path, read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SpecError(f"{source}: transformers cannot read it: {error}") from None
