"""Branches of a parallel block at the same time on a GPU, each in a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from archsearch.mixers.base import Call, tensors_in
from archsearch.spec.graph import Node


@cache
def side_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same streams for every block: memory is kept a stream, so that few are better than many. Of high
    priority, so that their kernels get in between the current stream's, which would fill the GPU."""
    return torch.cuda.Stream(device, priority=-1)


def independent(node: Node) -> bool:
    """Whether no branch of a parallel node reads what another one leaves, and none runs another's blocks: the
    order in which branches are launched then does not matter."""
    inside = [[inner for top in branch for inner in top.walk()] for branch in node.branches]
    held = [{path for n in nodes for path in (n.path, n.owner) if path} for nodes in inside]
    asked = [{path for n in nodes for path in (*n.inputs, *n.reads.values())} for nodes in inside]
    pairs = permutations(range(len(inside)), 2)
    return all(held[j].isdisjoint(held[i] | asked[i]) for i, j in pairs)


def overlapped(runs: Sequence[Callable[[], Tensor]], x: Tensor, call: Call) -> list[Tensor]:
    """What each run returns: the last in the current stream, the others beside it. Backward passes run in
    the streams of their forward passes. x, call: all that the runs read and leave; they are `independent`.
    """
    main = torch.cuda.current_stream(x.device)
    sides = [side_stream(x.device, i) for i in range(len(runs) - 1)]
    shared = list(tensors_in([x, call.streams]))
    for side in sides:
        side.wait_stream(main)
        for tensor in shared:
            tensor.record_stream(side)  # its memory is not given away while the side still reads it
    # Launched first: it need not get in between anything.
    last = runs[-1]()
    outputs = []
    for run, side in zip(runs[:-1], sides, strict=True):
        with torch.cuda.stream(side):
            outputs.append(run())
    for side in sides:
        main.wait_stream(side)
    for tensor in tensors_in([outputs, call.streams, call.losses]):
        tensor.record_stream(main)
    return [*outputs, last]
