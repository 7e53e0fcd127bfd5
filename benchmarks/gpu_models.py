"""The models of benchmarks/gpu.py: two sizes, five layouts, and a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpu_rivals
import torch
from gpu_report import DEVICE, autocast
from torch import Tensor, nn

from archsearch.compiler.merges import MergeModule
from archsearch.compiler.model import LanguageModel
from archsearch.mixers.base import Mixer
from archsearch.mixers.kernels import Kernels
from archsearch.spec import ModelSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits (tokens, vocabulary) and targets (tokens,)."""


@dataclass(frozen=True)
class Shape:
    """A size of model: widths, layers (an attention and an MLP each, or two Mambas), tokens a step."""

    d_model: int
    layers: int
    heads: int
    hidden: int
    tokens: int
    d_state: int = 128
    vocab: int = 32768


SHAPES = {
    "130m": Shape(768, 12, 12, 2048, 32768),
    "1.3b": Shape(2048, 24, 16, 5632, 8192),
    "smoke": Shape(64, 4, 2, 128, 128, 16, 256),
}


def layouts(shape: Shape) -> dict[str, list[Any]]:
    attention = {"attention": {"heads": shape.heads, "rope": {"theta": 10000}}}
    mlp = {"mlp": {"hidden": shape.hidden, "activation": "swiglu"}}
    mamba2 = {"mamba2": {"d_state": shape.d_state, "head_dim": 64 if shape.d_model > 64 else 16}}
    key_dim, value_dim = gpu_rivals.delta_widths(shape)
    delta = {
        "key_heads": shape.heads // 2,
        "value_heads": shape.heads,
        "key_dim": key_dim,
        "value_dim": value_dim,
    }
    both = {"parallel": {"branches": [mamba2, attention], "merge": "sum"}}
    n = shape.layers
    return {
        "mamba2": [{"repeat": 2 * n, "layers": [mamba2]}],
        "sequential": [{"repeat": n // 4, "layers": [mamba2, mlp] * 3 + [attention, mlp]}],
        "parallel": [{"repeat": n * 3 // 4, "layers": [both, mlp]}],
        "attention": [{"repeat": n, "layers": [attention, mlp]}],
        "deltanet": [{"repeat": n, "layers": [{"gated_deltanet": delta}, mlp]}],
    }


def spec_of(shape: Shape, layout: str, layers: int | None = None) -> ModelSpec:
    """layers: only the first of them."""
    fields = {"d_model": shape.d_model, "vocab_size": shape.vocab, "embedding": {"tied": True}}
    stack = layouts(shape)[layout]
    return ModelSpec.model_validate(
        {**fields, "layers": stack if layers is None else stack[0]["layers"][:layers]}
    )


def build(spec: ModelSpec, mode: Any = "auto") -> LanguageModel:
    """A model with initial weights drawn on the device: drawing a billion on a CPU takes too long here."""
    with torch.device(DEVICE):
        model = LanguageModel(spec, Kernels(mode, DEVICE))
        generator = torch.Generator(DEVICE).manual_seed(0)
        for module in model.modules():
            if isinstance(module, Mixer | MergeModule):
                module.reset_parameters(generator)
        nn.init.normal_(model.embedding.weight, std=0.02, generator=generator)
    return model


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def training_step(
    logits: Callable[[Tensor], Tensor],
    loss_of: Loss,
    optimiser: torch.optim.Optimizer,
    ids: Tensor,
    around: Callable[[], Any] = autocast,
) -> Callable[[], object]:
    """bf16 autocast over fp32 weights, unless `logits` sees to that by itself. Gradients are dropped at the
    end, so that another model's steps in between have their memory."""
    targets = ids.roll(-1, 1)

    def step() -> None:
        with around():
            loss = loss_of(logits(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
