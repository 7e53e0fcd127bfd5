"""Steps of a stack of blocks; on a GPU as CUDA graphs where nothing but numbers changes from token to token.

One token is little work: the host takes many times longer to launch its kernels than a GPU to run them.
Caches that grow with the tokens stay where they are: a recording is told where, and how long they are.

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

from archsearch.compiler.leaves import (
    Leaves,
    Numbers,
    a_token_later,
    is_recordable,
    last_position,
    rebuilt,
    with_room,
)
from archsearch.compiler.recording import Recording, Tensors, first_cause, tables_of
from archsearch.mixers.base import Call
from archsearch.mixers.cache import KvCache
from archsearch.mixers.rope import Rotary

MOST_KEPT = 4
"""Recordings, of batches that differ in size or dtype. Each keeps states of its own."""

COVERED = 4096
"""Positions, beyond twice those that have been, for which rotations are at hand when a step is recorded."""


class Pending(NamedTuple):
    """x + y, to be added by the norm of the next block."""

    x: Tensor
    y: Tensor


class StackSteps:
    """Steps `blocks` one after another: (batch, d_model), a state a block -> the same, one token later.

    Of each kind of batch the first step shows which blocks' states can be recorded; those that follow one
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
            if runs is not None and all(run.is_valid() for run in runs):
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
                found = run.replayed(x_bd, before, call)
            except Exception as error:  # out of memory, or whatever a layer does that cannot be recorded
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


class _Recorded(NamedTuple):
    """numbers: what tells it of caches and positions. tables: what it reads beside weights. covered: for how
    many positions it has rotations."""

    step: Recording
    numbers: Numbers
    tables: list[Tensor]
    covered: int


class _Run:
    """Blocks that follow one another, from `start` on, their states before a step, and whether all are to be
    recorded, or none."""

    def __init__(self, start: int, blocks: list[Any], states: Sequence[Any], recorded: bool):
        self.start, self.blocks = start, blocks
        self._recorded = recorded
        self._made: _Recorded | None = None
        self._forms = Leaves.of(states).forms()
        self._weights = _Weights(blocks if recorded else [])
        self._ropes = [m for block in blocks for m in block.modules() if isinstance(m, Rotary)]

    def is_valid(self) -> bool:
        return self._weights.are_same()

    def replayed(
        self, x_bd: Tensor, states: Sequence[Any], call: Call
    ) -> tuple[Tensor, Sequence[Any]] | None:
        """The step by its recording; None where there is none to be, or not of such states."""
        given = Leaves.of(states)
        padded = bool(given.growing) and call.mask is not None
        if not self._recorded or padded or given.forms() != self._forms:
            return None
        if self._made is None or (self._ropes and last_position(given.growing) >= self._made.covered):
            return self._record(x_bd, states, given)
        growing = with_room(given.growing)
        self._made.numbers.tell(growing)
        x_bd, after = self._made.step(x_bd, given.tensors, donated=call.donated)
        if after is given.tensors and not growing:
            return x_bd, states
        return x_bd, rebuilt(states, iter(after), iter(a_token_later(growing)))

    @property
    def is_replayed(self) -> bool:
        return self._made is not None

    def _record(self, x_bd: Tensor, states: Sequence[Any], given: Leaves) -> tuple[Tensor, Sequence[Any]]:
        """Record the step, and return what it is kernel by kernel."""
        with kernel_by_kernel():
            y_bd, after = stepped(self.blocks, x_bd, states, Call())
        expected = Leaves.of(after)
        growing = with_room(given.growing)  # what is written now is not what the step wrote
        covered = 2 * last_position(growing) + COVERED
        for rope in self._ropes:
            rope.cover(covered)
        numbers = Numbers(growing, x_bd.device)
        numbers.tell(growing)

        def run(tensors: Tensors) -> Tensors:
            x_bd, *held = tensors
            before = rebuilt(states, iter(held), iter(numbers.places))
            with kernel_by_kernel():
                x_bd, after = stepped(self.blocks, x_bd, before, Call(donated=True))
            return [x_bd, *Leaves.of(after, states).tensors]

        step = Recording(run, [x_bd, *given.tensors])
        found_bd, tensors = step(x_bd, given.tensors)
        found = [found_bd, *tensors, *_written(a_token_later(growing))]
        if _differ(found, [y_bd, *expected.tensors, *_written(expected.growing)]):
            raise RuntimeError("replayed, a step is not what it is kernel by kernel")
        self._made = _Recorded(step, numbers, tables_of(self.blocks), covered)
        return y_bd, after


class _Weights:
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
    able = [_by_itself(b) and is_recordable(*pair) for b, *pair in zip(blocks, before, after, strict=True)]
    runs, start = [], 0
    for recorded, part in groupby(zip(able, blocks, strict=True), key=lambda pair: pair[0]):
        inside = [block for _, block in part]
        runs.append(_Run(start, inside, before[start : start + len(inside)], recorded))
        start += len(inside)
    return runs


def _by_itself(block: nn.Module) -> bool:
    """Whether its step depends on what comes in and on its state alone."""
    return all(getattr(module, "by_itself", True) for module in block.modules())


def _written(growing: Sequence[Any]) -> Tensors:
    """What was written into caches."""
    caches = [part for part in growing if isinstance(part, KvCache)]
    return [t[..., -1:, :] for cache in caches for t in (cache.k_bgte, cache.v_bgte)]


def _differ(found: Tensors, expected: Tensors) -> bool:
    """Whether tensors differ by more than another order of sums would make (not a number: never)."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    return bool((torch.stack([(a - b).norm() - 0.02 * b.norm() for a, b in pairs]) > 1e-6).any())
