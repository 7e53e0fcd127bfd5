"""The language model that a spec describes.

Shape suffixes: b batch, l length, d d_model, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.compiler.blocks import StackBuilder
from archsearch.mixers.base import Surroundings, state_bytes
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.norms import NORMS
from archsearch.spec.model import ModelSpec


@dataclass(frozen=True)
class ModelState:
    """Everything a model remembers of a batch of sequences: one state a layer, and how many tokens it saw."""

    layers: tuple[Any, ...]
    position: int

    def bytes(self) -> int:
        """Bytes held, over the whole batch."""
        return state_bytes(self.layers)


class LanguageModel(nn.Module):
    """Token ids (batch, length) -> logits (batch, length, vocab).

    Logits are of the model's dtype. `spec` is what it was compiled from, `kernels` what computes it.
    """

    def __init__(self, spec: ModelSpec, kernels: Kernels):
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        self.embedding = nn.Embedding(spec.vocab, spec.d_model)
        positions = spec.embedding.positions
        self.positions = nn.Embedding(positions.learned, spec.d_model) if positions else None
        around = Surroundings(spec.d_model, spec.norm.eps, kernels)
        self.layers: Any = nn.ModuleList(StackBuilder(spec, around).stack(spec.nodes))
        self.final_norm = NORMS[spec.norm.kind](spec.d_model, spec.norm.eps) if spec.final_norm else None
        self.head = None if spec.embedding.tied else nn.Linear(spec.d_model, spec.vocab, bias=False)

    def forward(self, ids_bl: Tensor) -> Tensor:
        x_bld = self._embed(ids_bl, 0)
        for layer in self.layers:
            x_bld = layer(x_bld)
        return self._logits(x_bld)

    def prefill(self, ids_bl: Tensor) -> tuple[Tensor, ModelState]:
        """Logits of a whole sequence (at least one token), and the state after it."""
        if ids_bl.shape[1] == 0:
            raise ValueError("prefill needs at least one token")
        x_bld = self._embed(ids_bl, 0)
        states = []
        for layer in self.layers:
            x_bld, state = layer.prefill(x_bld)
            states.append(state)
        return self._logits(x_bld), ModelState(tuple(states), ids_bl.shape[1])

    def step(self, ids_b: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Logits (batch, vocab) after one more token a sequence (batch,), and the new state."""
        x_bd = self._embed(ids_b[:, None], state.position)[:, 0]
        states = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x_bd, after = layer.step(x_bd, before)
            states.append(after)
        return self._logits(x_bd), ModelState(tuple(states), state.position + 1)

    def _embed(self, ids_bl: Tensor, start: int) -> Tensor:
        x_bld = self.embedding(ids_bl)
        if self.spec.scales.embedding != 1.0:
            x_bld = x_bld * self.spec.scales.embedding
        if self.positions is not None:
            end = start + ids_bl.shape[1]
            if end > self.positions.num_embeddings:
                raise ValueError(
                    f"position {end} is beyond the {self.positions.num_embeddings} learned positions"
                )
            x_bld = x_bld + self.positions.weight[start:end]
        return x_bld

    def _logits(self, x: Tensor) -> Tensor:
        if self.final_norm is not None:
            x = self.final_norm(x)
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(x, weight)
        return logits if self.spec.scales.logits == 1.0 else logits * self.spec.scales.logits
