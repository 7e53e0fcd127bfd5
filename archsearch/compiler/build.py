"""Spec -> module."""

from __future__ import annotations

import torch

from archsearch.compiler.lora import LoraLinear
from archsearch.compiler.merges import MergeModule
from archsearch.compiler.model import LanguageModel
from archsearch.mixers.base import Mixer
from archsearch.mixers.kernels import Mode, choose_kernels
from archsearch.spec.model import ModelSpec


def compile_model(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    kernels: Mode = "auto",
) -> LanguageModel:
    """Build the model that `spec` describes, its initial weights drawn from `seed` alone.

    The same spec, seed and dtype give the same weights on every device. kernels: `auto` uses CUDA kernels
    where they are installed, work and the device is CUDA; `native` never; `require` raises `KernelError`
    where one is missing.
    """
    model = LanguageModel(spec, choose_kernels(kernels, str(device)))
    _initialise(model, torch.Generator().manual_seed(seed))
    return model.to(device=device, dtype=dtype)


def _initialise(model: LanguageModel, generator: torch.Generator) -> None:
    """Draw every weight, in the order of the graph; a shared layer once."""
    with torch.no_grad():
        model.embedding.weight.normal_(0, model.spec.embedding.std, generator=generator)
        if model.positions is not None:
            model.positions.weight.normal_(0, model.spec.embedding.std, generator=generator)
        if model.meta_tokens is not None:
            model.meta_tokens.normal_(0, model.spec.embedding.std, generator=generator)
        if model.head is not None:
            bound = model.spec.d_model**-0.5
            model.head.weight.uniform_(-bound, bound, generator=generator)
    tied = {block.layer for block in model.blocks.values() if block.node.owner is not None}
    for module in model.layers.modules():
        if isinstance(module, Mixer | MergeModule | LoraLinear) and module not in tied:
            module.reset_parameters(generator)
