"""Work on a GPU as a CUDA graph: one launch in the place of many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import ReferenceType, WeakSet, ref

import torch
from torch import Tensor, nn

from archsearch.mixers.base import tensors_in

Tensors = list[Tensor]


class Graph:
    """Work as a CUDA graph. found: what the work returned, where each call writes it anew.

    The work has run before, so that nothing is tuned or compiled any more.
    """

    def __init__(self, work: Callable[[], Tensors], device: torch.device):
        pool, users = pool_of((device, torch.cuda.current_stream(device).cuda_stream))
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile is theirs, but for recordings: a process makes one at a time.
        graph = torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local")
        with _uncached(device.type), _one_at_a_time, on_this_stream(device), graph:
            self.found = work()
        users.add(self)

    def __call__(self) -> None:
        self._graph.replay()


class Recording:
    """A step, x and states -> x and states, as a graph: for tensors of the shapes of those given first.

    It writes over states of its own, into which those given are copied, and which are copied for who asks.
    Where states are donated its own are lent instead: if those come back, donated too, nothing is copied.
    """

    def __init__(self, run: Callable[[Tensors], Tensors], given: Tensors):
        # Ordinary tensors: later calls may come from outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self._x, *states = [tensor.clone() for tensor in given]
            self._states = Buffers(states)
            self._once(run)  # in place it may take kernels that steps so far have not
            self._graph = Graph(lambda: self._once(run), self._x.device)
        self._lent: list[ReferenceType[Tensor]] = []

    def __call__(self, x: Tensor, states: Tensors, *, donated: bool = False) -> tuple[Tensor, Tensors]:
        own = len(states) == len(self._lent) and all(
            ref() is tensor for ref, tensor in zip(self._lent, states, strict=True)
        )
        if not (own and donated):
            self._take_back()
        if not own:
            self._states.fill(states)
        self._x.copy_(x)
        self._graph()
        y = self._graph.found[0].clone()
        if not donated:
            return y, self._states.copies()
        return y, states if own else self._lend()

    def _once(self, run: Callable[[Tensors], Tensors]) -> Tensors:
        y, *after = run([self._x, *self._states.held])
        own = {_memory(tensor) for tensor in self._states.held}
        # What lies in one state and goes to another is read before any is written.
        places = zip(after, self._states.held, strict=True)
        apart = [a.clone() if _memory(a) in own and a.data_ptr() != b.data_ptr() else a for a, b in places]
        y = y.clone() if _memory(y) in own else y
        self._states.fill(apart)
        return [y]

    def _lend(self) -> Tensors:
        """Tensors of their own in the memory of the states, so that they can be taken out of it."""
        with torch.inference_mode(False):
            lent = [_put(torch.empty(0, dtype=t.dtype, device=t.device), t) for t in self._states.held]
        self._lent = [ref(tensor) for tensor in lent]
        return lent

    def _take_back(self) -> None:
        """What is lent and still in use moves to memory of its own."""
        lent = [reference() for reference in self._lent]
        if any(tensor is not None for tensor in lent):
            for tensor, copy in zip(lent, self._states.copies(), strict=True):
                if tensor is not None:
                    _put(tensor, copy)
        self._lent = []


def _put(tensor: Tensor, place: Tensor) -> Tensor:
    """tensor, in the memory of another one."""
    return tensor.set_(place.untyped_storage(), place.storage_offset(), place.shape, place.stride())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Buffers:
    """Tensors that stay where they are, in groups of one shape and dtype: a launch copies a group."""

    def __init__(self, held: Tensors):
        self.held = held
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for i, tensor in enumerate(held):
            alike[tensor.shape, tensor.dtype].append(i)
        self._groups = [(places, [held[i] for i in places]) for places in alike.values()]

    def fill(self, given: Tensors) -> None:
        """With what is not there already."""
        for places, group in self._groups:
            pairs = [(a, given[i]) for i, a in zip(places, group, strict=True)]
            apart = [(a, b) for a, b in pairs if a.data_ptr() != b.data_ptr()]
            if apart:
                torch._foreach_copy_([a for a, _ in apart], [b for _, b in apart])

    def copies(self) -> Tensors:
        """The tensors as they are now, in new memory: one piece a group."""
        copies = list(self.held)
        for places, group in self._groups:
            room = group[0].new_empty(len(group), *group[0].shape).unbind()
            torch._foreach_copy_(room, group)
            for i, copy in zip(places, room, strict=True):
                copies[i] = copy
        return copies


_one_at_a_time = Lock()
_pools: dict[Hashable, tuple[Any, WeakSet[Any]]] = {}


def pool_of(stream: Hashable) -> tuple[Any, WeakSet[Any]]:
    """The memory of all recordings of a stream, and those: they run in turn, and what they find is copied at
    once. A new one where none is left, since torch takes up no pool that has been given up."""
    pool, users = _pools.get(stream, (None, WeakSet()))
    if not users:
        pool = torch.cuda.graph_pool_handle()
    _pools[stream] = pool, users
    return pool, users


@contextmanager
def on_this_stream(device: torch.device) -> Iterator[None]:
    """The current stream is so afterwards too: a recording that fails leaves its own."""
    stream = torch.cuda.current_stream(device)
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


def tables_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """What layers work out once and keep, beside weights: a recording reads it where it lies, even after a
    layer has taken larger tables for a longer sequence. (Weights held so would stay when a model leaves.)"""
    every = [vars(inner).items() for module in modules for inner in module.modules()]
    kept = [value for items in every for name, value in items if name not in ("_parameters", "_buffers")]
    return list(tensors_in(kept))


def first_cause(error: BaseException) -> str:
    """A recording that failed is ended, which fails too: what came first says why."""
    while error.__context__ is not None:
        error = error.__context__
    told = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {told}"


def _uncached(device: str) -> torch.autocast:
    """Autocast as it is, but for weights that it rounded earlier, whose memory it will give away."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)
