"""Blocks: norm, layer, residual; and the layers that hold others.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler.lora import adapt
from archsearch.compiler.merges import MERGE_MODULES
from archsearch.compiler.overlap import independent, overlapped
from archsearch.compiler.steps import Pending, StackSteps
from archsearch.mixers.base import Call, Mixer, Surroundings, masked
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.norms import RMSNorm, build_norm
from archsearch.mixers.table import MIXERS
from archsearch.spec.graph import Node
from archsearch.spec.model import ModelSpec


class Block(nn.Module):
    """skip * x + out * norm_out(layer(in * norm_in([x; inputs]))), each part as the node says.

    `pre` norms the layer's input, `post` its output, `sandwich` both, `entry` what enters the block.

    splits: the residual and its norm are one operation. defers: the sum with the residual is left to the next
    block, which has a kernel for sum and norm together.
    """

    def __init__(self, node: Node, layer: nn.Module, spec: ModelSpec, kernels: Kernels):
        super().__init__()
        d_model = spec.d_model
        self.node = node
        self.residual = node.residual
        self.in_scale, self.skip_scale = node.layer.in_scale, node.layer.skip_scale
        self.out_scale = node.layer.out_scale * (spec.scales.residual if node.residual else 1.0)
        self.enters = node.norm == "entry"
        before, after = node.norm in ("pre", "sandwich", "entry"), node.norm in ("post", "sandwich")
        self.norm = build_norm(spec.norm, node.layer.input_width(d_model), kernels) if before else None
        self.post_norm = build_norm(spec.norm, d_model, kernels) if after else None
        self.layer: Any = layer
        self.splits = self.norm is not None and not node.inputs and not self.enters and _rounds_input(layer)
        self.defers = self.residual and self.post_norm is None and self.skip_scale == self.out_scale == 1.0
        self.stream: str | None = None
        """The stream that the output goes to, where a later layer takes it as an input."""

    @property
    def by_itself(self) -> bool:
        """Whether it takes no other layer's output beside its input, and leaves none for one."""
        return not self.node.inputs and self.stream is None

    def forward(self, x: Tensor | Pending, call: Call) -> Tensor | Pending:
        x, y = self._in(x, call)
        return self._left(x, self.layer(masked(y, call), call), call)

    def followed_by(self, block: Block | None) -> None:
        """Note a place of this block; in all of them the next one must take a pending sum."""
        norm = block.norm if block is not None and block.splits else None
        kernel = norm.kernel if isinstance(norm, RMSNorm) else None
        self.defers = self.defers and kernel is not None and kernel.function is not None

    def prefill(self, x: Tensor, call: Call) -> tuple[Tensor, Any]:
        x, y = self._in(x, call)
        y, state = self.layer.prefill(masked(y, call), call)
        return self._out(x, y, call), state

    def step(self, x: Tensor | Pending, state: Any, call: Call) -> tuple[Tensor | Pending, Any]:
        x, y = self._in(x, call)
        y, state = self.layer.step(y, state, call)
        return self._left(x, y, call), state

    def _left(self, x: Tensor, y: Tensor, call: Call) -> Tensor | Pending:
        """For the next block."""
        if self.defers and self.stream is None and not torch.compiler.is_compiling():
            return Pending(x, y)
        return self._out(x, y, call)

    def _in(self, given: Tensor | Pending, call: Call) -> tuple[Tensor, Tensor]:
        """The residual, and what the layer reads."""
        x, added = given if isinstance(given, Pending) else (given, None)
        y = x
        if self.node.inputs:
            y = torch.cat([x, *(call.streams[name] for name in self.node.inputs)], dim=-1)
        if self.norm is not None and self.splits:
            x, y = self.norm.beside(x, added)
        elif self.norm is not None:
            y = self.norm(y)
        if self.enters:
            x = y
        return x, y if self.in_scale == 1.0 else y * self.in_scale

    def _out(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        if self.post_norm is not None:
            y = self.post_norm(y)
        if self.residual:
            x = x if self.skip_scale == 1.0 else x * self.skip_scale
            y = x + y if self.out_scale == 1.0 else torch.add(x, y, alpha=self.out_scale)
        elif self.out_scale != 1.0:
            y = y * self.out_scale
        if self.stream is not None:
            call.streams[self.stream] = y
        return y


class SequentialLayer(nn.Module):
    """Blocks one after another. State: one a block."""

    def __init__(self, blocks: list[Block]):
        super().__init__()
        self.layers: Any = nn.ModuleList(blocks)
        self._steps = StackSteps(self.layers)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        return _through(self.layers, x, call)

    def prefill(self, x: Tensor, call: Call) -> tuple[Tensor, Any]:
        return prefilled(self.layers, x, call)

    def step(self, x: Tensor, state: Any, call: Call) -> tuple[Tensor, Any]:
        return self._steps(x, state, call)


class ParallelLayer(nn.Module):
    """Branches that read the same input, and their merge. State: one a block of each branch; the merge's.

    overlap: on a GPU, branches run at the same time; they must be independent.
    """

    def __init__(self, branches: list[list[Block]], merge: nn.Module, overlap: bool = False):
        super().__init__()
        self.overlap = overlap
        self.branches: Any = nn.ModuleList(nn.ModuleList(blocks) for blocks in branches)
        self.merge: Any = merge
        self._steps: list[StackSteps] = [StackSteps(blocks) for blocks in self.branches]

    def forward(self, x: Tensor, call: Call) -> Tensor:
        runs = [partial(_through, blocks, x, call) for blocks in self.branches]
        if self.overlap and x.is_cuda and not torch.compiler.is_compiling():
            outputs = overlapped(runs, x, call)
        else:
            outputs = [run() for run in runs]
        return self.merge(outputs, x, call)

    def prefill(self, x: Tensor, call: Call) -> tuple[Tensor, Any]:
        found = [prefilled(blocks, x, call) for blocks in self.branches]
        outputs, states = [y for y, _ in found], tuple(state for _, state in found)
        y, merge_state = self.merge.prefill(outputs, x, call)
        return y, (states, merge_state)

    def step(self, x: Tensor, state: Any, call: Call) -> tuple[Tensor, Any]:
        found = [steps(x, before, call) for steps, before in zip(self._steps, state[0], strict=True)]
        outputs, states = [y for y, _ in found], tuple(state for _, state in found)
        y, merge_state = self.merge.step(outputs, x, state[1], call)
        return y, (states, merge_state)


def _rounds_input(layer: nn.Module) -> bool:
    """Whether all that read the layer's input round it; a residual among them would hand it on."""
    if isinstance(layer, ParallelLayer):
        firsts = [blocks[0] for blocks in layer.branches]
        bare = all(not first.residual and first.norm is None for first in firsts)
        return bare and all(_rounds_input(first.layer) for first in firsts)
    return isinstance(layer, Mixer) and layer.rounds_input


def prefilled(blocks: Any, x: Tensor, call: Call) -> tuple[Tensor, tuple[Any, ...]]:
    """Blocks one after another over a sequence, and a state of each."""
    states = []
    for block in blocks:
        x, state = block.prefill(x, call)
        states.append(state)
    return x, tuple(states)


def _through(blocks: nn.ModuleList, x: Any, call: Call) -> Tensor:
    for block in blocks:
        x = block(x, call)
    return x


class StackBuilder:
    """Nodes -> blocks. A shared node gets the very block of its owner, or, where low-rank terms set its uses
    apart, a block around the same parameters.

    built: path -> block, of every node that is no plain share.
    """

    def __init__(self, spec: ModelSpec, around: Surroundings):
        self.spec = spec
        self.around = around
        self.built: dict[str, Block] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def stack(self, nodes: tuple[Node, ...]) -> list[Block]:
        blocks = [self.block(node) for node in nodes]
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            block.followed_by(after)
        return blocks

    def block(self, node: Node) -> Block:
        if node.owner is not None and node.lora is None and node.layer.lora is None:
            return self.built[node.owner]
        block = Block(node, self._layer(node), self.spec, self.around.kernels)
        if node.owner is not None:
            _tie(block, self._tensors[node.owner])
        elif node.layer.id is not None:
            # Noted before a low-rank term wraps a projection and so renames its weights.
            self._tensors[node.path] = dict([*block.named_parameters(), *block.named_buffers()])
        if node.lora is not None:
            adapt(block.layer, node.layer.projections(self.spec.d_model), node.lora)
        self.built[node.path] = block
        self._connect(node, block)
        return block

    def _layer(self, node: Node) -> nn.Module:
        if node.merge is not None:
            widths = node.widths(self.spec.d_model)
            merge = MERGE_MODULES[node.merge.kind](node.merge, widths, self.around)
            branches = [self.stack(branch) for branch in node.branches]
            return ParallelLayer(branches, merge, overlap=independent(node))
        if node.branches:
            return SequentialLayer(self.stack(node.branches[0]))
        return MIXERS[node.kind](node.layer, self.around, node.project)

    def _connect(self, node: Node, block: Block) -> None:
        """Have the layers that this one reads leave what it needs."""
        for path in node.inputs:
            if path in self.built:
                self.built[path].stream = path
        for role, path in node.reads.items():
            stream = f"{role} of {path}"
            source = self.built[path].layer
            assert isinstance(source, Mixer)
            assert isinstance(block.layer, Mixer)
            source.telling[role] = block.layer.reading[role] = stream


def _tie(block: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the owner's parameters and buffers in place of the block's own."""
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        setattr(block.get_submodule(place), last, tensor)
