"""Steps of a stack of blocks; on a GPU as CUDA graphs where nothing but numbers changes from token to token.

One token is little work: the host takes many times longer to launch its kernels than a GPU to run them. What
has a state that grows with the tokens (attention) runs kernel by kernel.

Shape suffixes: b batch, d d_model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from archsearch.compiler.recording import Recording, Tensors, first_cause, tables_of
from archsearch.mixers.base import Call, tensors_in

MOST_KEPT = 4
"""Recordings, of batches that differ in size or dtype. Each keeps its states twice."""


class Pending(NamedTuple):
    """x + y, to be added by the norm of the next block."""

    x: Tensor
    y: Tensor


class StackSteps:
    """Steps `blocks` one after another: (batch, d_model), a state a block -> the same, one token later.

    Of each kind of batch the first step shows which blocks' states keep their shapes; those that follow one
    another are recorded in the second, and replayed from then on. States are copied into a recording and out
    of it, so that old ones stay valid, unless the call has them donated. What cannot be recorded goes on
    kernel by kernel: `refused` says why.
    """

    def __init__(self, blocks: Any):  # a ModuleList
        self.refused: str | None = None
        self._blocks = blocks
        self._kept: dict[Hashable, list[_Run]] = {}
        self._lock = Lock()

    def __call__(self, x_bd: Tensor, states: Sequence[Any], call: Call) -> tuple[Tensor, tuple[Any, ...]]:
        if self.refused is not None or not may_replay(x_bd):
            return stepped(self._blocks, x_bd, states, call)
        kind = _kind(x_bd)
        with self._lock:  # a recording has room for one step at a time
            runs = self._kept.get(kind)
            if runs is not None and all(run.in_place() for run in runs):
                return self._replayed(runs, x_bd, states, call)
        x_bd, after = stepped(self._blocks, x_bd, states, call)
        with self._lock:
            if self._kept.pop(kind, None) is not None:
                self._kept.clear()  # weights that moved did so for every kind
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[kind] = _runs(self._blocks, states, after)
        return x_bd, after

    def _replayed(
        self, runs: list[_Run], x_bd: Tensor, states: Sequence[Any], call: Call
    ) -> tuple[Tensor, tuple[Any, ...]]:
        after: list[Any] = []
        for run in runs:
            before = states[run.start : run.start + len(run.blocks)]
            try:
                found = run.replayed(x_bd, before, donated=call.donated)
            except RuntimeError as error:  # out of memory, or a kernel that cannot be recorded
                self.refused, found = first_cause(error), None
            x_bd, held = stepped(run.blocks, x_bd, before, call) if found is None else found
            after.extend(held)
        if self.refused is not None:
            self._kept.clear()
        return x_bd, tuple(after)

    def replayed_blocks(self) -> int:
        """Those of all recordings that there are."""
        runs = [run for kept in self._kept.values() for run in kept]
        return sum(len(run.blocks) for run in runs if run.is_replayed)

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a model and pickles: recordings belong to this one's parameters."""
        return {"_blocks": self._blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_blocks"])  # type: ignore[misc]


def told(model: nn.Module) -> dict[str, Any]:
    """How many blocks are recorded, by the stacks within others too, and why others are not."""
    held = [getattr(module, "_steps", []) for module in model.modules()]
    stacks = [one for some in held for one in (some if isinstance(some, list) else [some])]
    refused = sorted({stack.refused for stack in stacks if stack.refused})
    blocks = sum(stack.replayed_blocks() for stack in stacks)
    return {"blocks": blocks, **({"refused": refused} if refused else {})}


_replaying = ContextVar("replaying", default=True)


@contextmanager
def kernel_by_kernel() -> Iterator[None]:
    """No step is replayed within: what recordings are measured and checked against."""
    token = _replaying.set(False)
    try:
        yield
    finally:
        _replaying.reset(token)


def may_replay(x_bd: Tensor) -> bool:
    """Whether steps may be replayed here: on a GPU, without gradients, and outside of another recording."""
    if not x_bd.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _replaying.get() and not torch.cuda.is_current_stream_capturing()


class _Run:
    """Blocks that follow one another, from `start` on, their states before a step, and whether all are to be
    recorded, or none."""

    def __init__(self, start: int, blocks: list[Any], states: Sequence[Any], recorded: bool):
        self.start, self.blocks = start, blocks
        self._recorded = recorded
        self._recording: Recording | None = None
        self._forms = _forms(tensors_in(states))
        self._places = _Places(blocks if recorded else [])
        self._tables: list[Tensor] = []

    def in_place(self) -> bool:
        return self._places.are_same()

    def replayed(
        self, x_bd: Tensor, states: Sequence[Any], *, donated: bool
    ) -> tuple[Tensor, Sequence[Any]] | None:
        """The step by its recording; None where there is none to be, or not of such states."""
        held = list(tensors_in(states))
        if not self._recorded or _forms(held) != self._forms:
            return None
        if self._recording is None:
            x_bd, after = self._recorded_once(x_bd, held, states)
        else:
            x_bd, after = self._recording(x_bd, held, donated=donated)
        return x_bd, states if after is held else _made_as(states, iter(after))

    def _recorded_once(self, x_bd: Tensor, held: Tensors, like: Sequence[Any]) -> tuple[Tensor, Tensors]:
        """Record the step, and return what it is kernel by kernel."""
        given = [x_bd, *held]
        with kernel_by_kernel():
            found = self._flat(given, like, donated=False)
        recording = Recording(lambda tensors: self._flat(tensors, like, donated=True), given)
        y_bd, after = recording(x_bd, held)
        if _differ([y_bd, *after], found):
            raise RuntimeError("replayed, a step is not what it is kernel by kernel")
        self._recording, self._tables = recording, tables_of(self.blocks)
        return found[0], found[1:]

    @property
    def is_replayed(self) -> bool:
        return self._recording is not None

    def _flat(self, tensors: Tensors, like: Sequence[Any], *, donated: bool) -> Tensors:
        x_bd, *held = tensors
        x_bd, states = stepped(self.blocks, x_bd, _made_as(like, iter(held)), Call(donated=donated))
        return [x_bd, *tensors_in(states)]


class _Places:
    """Modules and weights, and where they lie: looked up at every token, and so a few steps each."""

    def __init__(self, blocks: Iterable[nn.Module]):
        modules = [module for block in blocks for module in block.modules()]
        inner = [module._modules for module in modules]
        held = [holder for m in modules for holder in (m._parameters, m._buffers)]
        self._holders: list[Any] = [*inner, *held]
        self._inner = [(holder, name) for holder in inner for name in holder]
        self._weights = [(holder, name) for holder in held for name in holder]
        self._before = self._now()

    def are_same(self) -> bool:
        """Whether modules and weights are those that they were, and lie where they did."""
        try:
            return self._before == self._now()
        except KeyError:  # one is gone
            return False

    def _now(self) -> tuple[int, list[int], list[int]]:
        weights = [0 if (t := holder[name]) is None else t.data_ptr() for holder, name in self._weights]
        modules = [id(holder[name]) for holder, name in self._inner]
        return sum(map(len, self._holders)), modules, weights


def _kind(x_bd: Tensor) -> Hashable:
    """What a recording is good for. Of the stream too: recordings of one stream run in turn."""
    device = x_bd.device
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    stream = torch.cuda.current_stream(device).cuda_stream if x_bd.is_cuda else None
    return x_bd.shape, x_bd.dtype, device, autocast, stream


def stepped(
    blocks: Iterable[Any], x_bd: Tensor, states: Sequence[Any], call: Call
) -> tuple[Tensor, tuple[Any, ...]]:
    """Kernel by kernel."""
    after, x = [], x_bd
    for block, before in zip(blocks, states, strict=True):
        x, state = block.step(x, before, call)
        after.append(state)
    return x.x + x.y if isinstance(x, Pending) else x, tuple(after)


def _runs(blocks: Iterable[Any], before: Sequence[Any], after: Sequence[Any]) -> list[_Run]:
    """The stack in parts, by whether a block can be recorded."""
    able = [_by_itself(b) and _keeps_shape(*pair) for b, *pair in zip(blocks, before, after, strict=True)]
    runs, start = [], 0
    for recorded, part in groupby(zip(able, blocks, strict=True), key=lambda pair: pair[0]):
        inside = [block for _, block in part]
        runs.append(_Run(start, inside, before[start : start + len(inside)], recorded))
        start += len(inside)
    return runs


def _by_itself(block: nn.Module) -> bool:
    """Whether its step depends on what comes in and on its state alone."""
    return all(getattr(module, "by_itself", True) for module in block.modules())


def _keeps_shape(before: Any, after: Any) -> bool:
    """Whether a state is made of tensors alone (a number in it would be recorded as it is) and stays so."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and before.dtype == after.dtype
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        return all(map(_keeps_shape, before, after))
    return before is None and after is None


def _forms(tensors: Iterable[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _made_as(like: Any, tensors: Iterator[Tensor]) -> Any:
    """A state of these tensors, made as another one is."""
    if isinstance(like, Tensor):
        return next(tensors)
    if not isinstance(like, tuple | list):
        return like
    parts = [_made_as(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _differ(found: Tensors, expected: Tensors) -> bool:
    """Whether tensors differ by more than another order of sums would make (not a number: never)."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    return bool((torch.stack([(a - b).norm() - 0.02 * b.norm() for a, b in pairs]) > 1e-6).any())
