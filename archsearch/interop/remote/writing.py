"""A model's folder with its own code: transformers loads it with `trust_remote_code`, without archsearch."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from archsearch.compiler.model import LanguageModel
from archsearch.interop.modules import first_names
from archsearch.interop.remote.bundle import PACKAGE, write_code
from archsearch.interop.remote.configuration_archsearch import ArchsearchConfig
from archsearch.mixers.table import MIXERS
from archsearch.spec.errors import SpecError

CLASS = "ArchsearchForCausalLM"
PREFIX = "model."
"""What transformers' class puts before the names of our tensors."""


def write_remote(model: LanguageModel, folder: Path) -> None:
    """config.json, model.safetensors and the code. Raises `SpecError` for layers from elsewhere."""
    for node in (inner for top in model.spec.nodes for inner in top.walk()):
        mixer = MIXERS.get(node.kind)
        if mixer is not None and mixer.__module__.split(".")[0] != PACKAGE:
            raise SpecError(f"{node.path}: {node.kind} is defined in {mixer.__module__}, not in {PACKAGE}")
    weights = unique(model)
    config = ArchsearchConfig(
        spec=model.spec.dump(),
        vocab_size=model.spec.vocab,
        hidden_size=model.spec.d_model,
        num_hidden_layers=len(model.spec.nodes),
        tie_word_embeddings=model.spec.embedding.tied,
        architectures=[CLASS],
        dtype=str(model.embedding.weight.dtype).removeprefix("torch."),
    )
    if model.spec.embedding.positions is not None:
        config.max_position_embeddings = model.spec.embedding.positions.learned
    config.auto_map = {
        "AutoConfig": "configuration_archsearch.ArchsearchConfig",
        "AutoModelForCausalLM": f"modeling_archsearch.{CLASS}",
    }
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_code(folder)


def unique(model: LanguageModel) -> dict[str, Tensor]:
    """Every weight once, under the first of its names in transformers' class."""
    tensors = model.state_dict()
    return {PREFIX + name: tensors[name].contiguous() for name in dict.fromkeys(first_names(model).values())}
