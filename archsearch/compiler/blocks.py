"""Blocks: norm, layer, residual; and the parallel layer.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler.merges import MERGE_MODULES
from archsearch.mixers.base import Surroundings
from archsearch.mixers.norms import NORMS
from archsearch.mixers.table import MIXERS
from archsearch.spec.graph import Node
from archsearch.spec.model import ModelSpec


class Block(nn.Module):
    """x + scale * norm_out(layer(norm_in(x))), each part as the node says.

    `pre` norms the input, `post` the layer's output, `sandwich` both.
    """

    def __init__(self, node: Node, layer: nn.Module, spec: ModelSpec):
        super().__init__()
        norm = NORMS[spec.norm.kind]
        self.node = node
        self.residual = node.residual
        self.scale = spec.scales.residual
        self.norm = norm(spec.d_model, spec.norm.eps) if node.norm in ("pre", "sandwich") else None
        self.post_norm = norm(spec.d_model, spec.norm.eps) if node.norm in ("post", "sandwich") else None
        self.layer: Any = layer

    def forward(self, x: Tensor) -> Tensor:
        return self._out(x, self.layer(self._in(x)))

    def prefill(self, x: Tensor) -> tuple[Tensor, Any]:
        y, state = self.layer.prefill(self._in(x))
        return self._out(x, y), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.layer.step(self._in(x), state)
        return self._out(x, y), state

    def _in(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        if self.post_norm is not None:
            y = self.post_norm(y)
        if not self.residual:
            return y
        return x + y if self.scale == 1.0 else torch.add(x, y, alpha=self.scale)


class ParallelLayer(nn.Module):
    """Branches that read the same input, and their merge. State: one a block of each branch; the merge's."""

    def __init__(self, branches: list[list[nn.Module]], merge: nn.Module):
        super().__init__()
        self.branches: Any = nn.ModuleList(nn.ModuleList(blocks) for blocks in branches)
        self.merge: Any = merge

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for blocks in self.branches:
            y = x
            for block in blocks:
                y = block(y)
            outputs.append(y)
        return self.merge(outputs, x)

    def prefill(self, x: Tensor) -> tuple[Tensor, Any]:
        outputs, states = self._each(x, lambda block, y, i, j: block.prefill(y))
        y, merge_state = self.merge.prefill(outputs, x)
        return y, (states, merge_state)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, states = self._each(x, lambda block, y, i, j: block.step(y, state[0][i][j]))
        y, merge_state = self.merge.step(outputs, x, state[1])
        return y, (states, merge_state)

    def _each(
        self, x: Tensor, run: Callable[[Any, Tensor, int, int], tuple[Tensor, Any]]
    ) -> tuple[list[Tensor], tuple[Any, ...]]:
        """Run every branch; the outputs, and the states by branch and block."""
        outputs: list[Tensor] = []
        states: list[Any] = []
        for i, blocks in enumerate(self.branches):
            y, kept = x, []
            for j, block in enumerate(blocks):
                y, block_state = run(block, y, i, j)
                kept.append(block_state)
            outputs.append(y)
            states.append(tuple(kept))
        return outputs, tuple(states)


class StackBuilder:
    """Nodes -> blocks; a shared node gets the very module of its owner."""

    def __init__(self, spec: ModelSpec, around: Surroundings):
        self.spec = spec
        self.around = around
        self.built: dict[str, Block] = {}

    def stack(self, nodes: tuple[Node, ...]) -> list[nn.Module]:
        return [self.block(node) for node in nodes]

    def block(self, node: Node) -> Block:
        if node.owner is not None:
            return self.built[node.owner]
        block = Block(node, self._layer(node), self.spec)
        self.built[node.path] = block
        return block

    def _layer(self, node: Node) -> nn.Module:
        if node.merge is None:
            return MIXERS[node.kind](node.layer, self.around, node.project)
        widths = node.widths(self.spec.d_model)
        merge = MERGE_MODULES[node.merge.kind](node.merge, widths, self.around)
        return ParallelLayer([self.stack(branch) for branch in node.branches], merge)
