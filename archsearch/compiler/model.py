"""The language model that a spec describes.

Shape suffixes: b batch, l length, t tokens so far, m meta tokens, d d_model, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.compiler.blocks import Block, StackBuilder, prefilled
from archsearch.compiler.steps import StackSteps
from archsearch.mixers.base import Call, Surroundings, state_bytes
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.norms import build_norm
from archsearch.spec.graph import EMBEDDING
from archsearch.spec.model import ModelSpec


@dataclass(frozen=True)
class ModelState:
    """Everything a model remembers of a batch of sequences: one state a layer, and how many tokens it saw.

    mask_bt: False at the padding among those tokens; None where there was none.
    """

    layers: tuple[Any, ...]
    position: int
    mask_bt: Tensor | None = None

    def bytes(self) -> int:
        """Bytes held, over the whole batch."""
        return state_bytes(self.layers)


class LanguageModel(nn.Module):
    """Token ids (batch, length) -> logits (batch, length, vocab).

    Logits are of the model's dtype. `spec` is what it was compiled from, `kernels` what computes it, `blocks`
    the block at each path of the graph. Batches of unequal sequences are padded on the left, and the call's
    `mask` (batch, length) is False there: real tokens then see what they would see alone.
    """

    def __init__(self, spec: ModelSpec, kernels: Kernels):
        super().__init__()
        self.spec = spec
        self.kernels = kernels
        self.embedding = nn.Embedding(spec.vocab, spec.d_model)
        positions = spec.embedding.positions
        self.positions = nn.Embedding(positions.learned, spec.d_model) if positions else None
        self.meta_tokens = (
            nn.Parameter(torch.empty(spec.meta_tokens, spec.d_model)) if spec.meta_tokens else None
        )
        builder = StackBuilder(
            spec, Surroundings(spec.d_model, spec.norm.eps, kernels, spec.norm.unit_offset)
        )
        self.layers: Any = nn.ModuleList(builder.stack(spec.nodes))
        self._steps = StackSteps(self.layers)
        self.blocks: dict[str, Block] = builder.built
        self.final_norm = build_norm(spec.norm, spec.d_model, kernels) if spec.final_norm else None
        self.head = None if spec.embedding.tied else nn.Linear(spec.d_model, spec.vocab, bias=False)

    def forward(self, ids_bl: Tensor, call: Call | None = None) -> Tensor:
        """call: carries a mask in, and auxiliary losses out."""
        x_bld, call = self._enter(ids_bl, call)
        for layer in self.layers:
            x_bld = layer(x_bld, call)
        return self._logits(x_bld[:, self.spec.meta_tokens :])

    def prefill(self, ids_bl: Tensor, call: Call | None = None) -> tuple[Tensor, ModelState]:
        """Logits of a whole sequence (at least one token), and the state after it."""
        if ids_bl.shape[1] == 0:
            raise ValueError("prefill needs at least one token")
        x_bld, call = self._enter(ids_bl, call)
        x_bld, states = prefilled(self.layers, x_bld, call)
        after = ModelState(states, x_bld.shape[1], call.mask)
        return self._logits(x_bld[:, self.spec.meta_tokens :]), after

    def step(self, ids_b: Tensor, state: ModelState, *, donate: bool = False) -> tuple[Tensor, ModelState]:
        """Logits (batch, vocab) after one more token a sequence (batch,), and the new state.

        donate: the state given is not used again, and the new one may take its memory. On a GPU, steps of
        many sequences are faster so.
        """
        mask_bt = None if state.mask_bt is None else F.pad(state.mask_bt, (0, 1), value=True)
        x_bd = self._embed(ids_b[:, None], self._positions(mask_bt, state.position, 1))[:, 0]
        call = Call(mask_bt, {EMBEDDING: x_bd}, donated=donate)
        x_bd, states = self._steps(x_bd, state.layers, call)
        return self._logits(x_bd), ModelState(states, state.position + 1, mask_bt)

    def _enter(self, ids_bl: Tensor, given: Call | None) -> tuple[Tensor, Call]:
        """What enters the stack, meta tokens in front; and the call that goes with it."""
        call = given if given is not None else Call()
        meta = self.spec.meta_tokens
        mask = call.mask if call.mask is None else F.pad(call.mask, (meta, 0), value=True)
        x_bld = self._embed(ids_bl, self._positions(mask, meta, ids_bl.shape[1]))
        if self.meta_tokens is not None:
            x_bld = torch.cat([self.meta_tokens.expand(len(ids_bl), -1, -1), x_bld], dim=1)
            if mask is not None:
                x_bld, mask = _padding_first(x_bld, mask, meta)
        # The caller's list, so that it sees what the layers add.
        return x_bld, Call(mask, {EMBEDDING: x_bld}, call.losses)

    def _positions(self, mask_bt: Tensor | None, start: int, length: int) -> Tensor | slice:
        """Which learned positions the last `length` tokens take; padding and meta tokens do not count."""
        start -= self.spec.meta_tokens
        if mask_bt is None:
            return slice(start, start + length)
        counted = mask_bt.cumsum(1) - 1 - self.spec.meta_tokens
        return counted[:, -length:].clamp_min(0)

    def _embed(self, ids_bl: Tensor, where: Tensor | slice) -> Tensor:
        x_bld = self.embedding(ids_bl)
        if self.spec.scales.embedding != 1.0:
            x_bld = x_bld * self.spec.scales.embedding
        if self.positions is not None:
            end = where.stop if isinstance(where, slice) else int(where.max()) + 1
            if end > self.positions.num_embeddings:
                raise ValueError(
                    f"position {end} is beyond the {self.positions.num_embeddings} learned positions"
                )
            x_bld = x_bld + self.positions.weight[where]
        return x_bld

    def _logits(self, x: Tensor) -> Tensor:
        if self.final_norm is not None:
            x = self.final_norm.beside(x)[1]
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits, scales = F.linear(x, weight), self.spec.scales
        if scales.logits != 1.0:
            logits = logits * scales.logits
        return logits if scales.softcap is None else scales.softcap * torch.tanh(logits / scales.softcap)


def _padding_first(x_bld: Tensor, mask_bl: Tensor, meta: int) -> tuple[Tensor, Tensor]:
    """Move each row's padding before its meta tokens, which are a part of the sequence."""
    length = mask_bl.shape[1]
    padding_b1 = length - mask_bl.sum(1, keepdim=True)
    place_bl = torch.arange(length, device=mask_bl.device).expand_as(mask_bl)
    # Where each place takes its vector from: padding stands behind `meta` vectors now, those behind none.
    source_bl = torch.where(place_bl < padding_b1, place_bl + meta, place_bl - padding_b1)
    source_bl = torch.where(place_bl < padding_b1 + meta, source_bl, place_bl)
    x_bld = x_bld.gather(1, source_bl.unsqueeze(-1).expand_as(x_bld))
    return x_bld, place_bl >= padding_b1
