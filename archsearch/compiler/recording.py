"""Work on a GPU as a CUDA graph: one launch in the place of many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from archsearch.mixers.base import tensors_in

Tensors = list[Tensor]


class Recording:
    """What `run` makes of tensors, as a CUDA graph: for tensors of the shapes of those given first.

    `run` has run at these shapes before, so that nothing is tuned or compiled any more.
    """

    def __init__(self, run: Callable[[Tensors], Tensors], given: Tensors):
        device = given[0].device
        pool, users = pool_of((device, torch.cuda.current_stream(device).cuda_stream))
        self._graph = torch.cuda.CUDAGraph()
        # Ordinary tensors: later calls may come from outside of inference mode.
        with torch.inference_mode(False), torch.no_grad(), _uncached(device.type):
            self._given = Buffers([tensor.clone() for tensor in given])
            # What other threads do meanwhile is theirs, but for recordings: a process makes one at a time.
            graph = torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local")
            with _one_at_a_time, on_this_stream(device), graph:
                found = run(self._given.held)
        self._found = Buffers(found)
        users.add(self)

    def __call__(self, given: Tensors) -> Tensors:
        self._given.fill(given)
        self._graph.replay()
        return self._found.copies()


class Buffers:
    """Tensors that stay where they are, in groups of one shape and dtype: a launch copies a group."""

    def __init__(self, held: Tensors):
        self.held = held
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for i, tensor in enumerate(held):
            alike[tensor.shape, tensor.dtype].append(i)
        self._groups = [(places, [held[i] for i in places]) for places in alike.values()]

    def fill(self, given: Tensors) -> None:
        for places, group in self._groups:
            torch._foreach_copy_(group, [given[i] for i in places])

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
