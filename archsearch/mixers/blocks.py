"""Blocks of tensors that stay in a CPU's cache while one operation after another passes over them."""

from __future__ import annotations

import math

from torch import Tensor

BLOCK_ELEMENTS = 1 << 18
"""Numbers of one array in a block. Measured: fewer cost more in calls than they save in memory traffic."""

LOG2_E = math.log2(math.e)
"""exp(x) = exp2(x log2 e), and on a CPU torch's exp2 takes less than half of exp's time."""

Block = tuple[slice, slice]


def blocks(t: Tensor, elements: int = BLOCK_ELEMENTS) -> list[Block]:
    """Slices of the first two axes of t; all of the second axis comes before more of the first.

    As many rows of the second axis as a block holds, and of the first as many as then fit. On other devices,
    where calls cost more and caches hold less, one block.
    """
    rows, columns = t.shape[:2]
    room = max(1, elements // max(1, t[0, 0].numel())) if t.device.type == "cpu" else rows * columns
    width = min(columns, room)
    height = max(1, room // width)
    return [
        (slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
        for i in range(0, rows, height)
        for j in range(0, columns, width)
    ]
