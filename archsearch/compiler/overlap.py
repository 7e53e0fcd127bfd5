"""Branches of a parallel block at the same time on a GPU, each in a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from archsearch.mixers.base import tensors_in


@cache
def side_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same streams for every block: memory is kept a stream, so that few are better than many. Of high
    priority, so that their kernels get in between the current stream's, which would fill the GPU."""
    return torch.cuda.Stream(device, priority=-1)


def overlapped(
    runs: Sequence[Callable[[], Tensor]], read: Iterable[object], device: torch.device
) -> list[Tensor]:
    """What each run returns: the last in the current stream, the others beside it. Backward passes run in
    the streams of their forward passes. read: (nested) tensors of the current stream that the runs read.
    """
    main = torch.cuda.current_stream(device)
    sides = [side_stream(device, i) for i in range(len(runs) - 1)]
    shared = [tensor for given in read for tensor in tensors_in(given)]
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
    for side, output in zip(sides, outputs, strict=True):
        main.wait_stream(side)
        output.record_stream(main)
    return [*outputs, last]
