"""The diagonal linear recurrence h_t = a_t h_{t-1} + x_t.

It runs in place over blocks of time that stay in the cache between the passes that make a and x, scan, and
use h. Nothing is divided and no product of decays is formed: any a, zeros included, is exact to rounding.

Its gradient is the recurrence run backward: with g_t = dh_t + a_{t+1} g_{t+1}, dx_t = g_t and
da_t = g_t h_{t-1}, so a backward pass needs h and a alone.

Shape suffixes: b batch, l length, c channels; l alone a tuple over time.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 17
"""Numbers of one array in a block. Measured: smaller blocks cost more calls than their cache hits save."""


def linear_scan_reference(a_blc: Tensor, x_blc: Tensor) -> Tensor:
    """The recurrence as written, token by token, from h = 0: the truth. Returns every h."""
    h_bc = torch.zeros_like(x_blc[:, 0])
    states = []
    for a_bc, x_bc in zip(a_blc.unbind(1), x_blc.unbind(1), strict=True):
        h_bc = a_bc * h_bc + x_bc
        states.append(h_bc)
    return torch.stack(states, dim=1)


def time_blocks(length: int, elements: int) -> list[slice]:
    """The blocks of a sequence whose every token has `elements` numbers."""
    tokens = max(1, BLOCK_ELEMENTS // elements)
    return [slice(start, min(start + tokens, length)) for start in range(0, length, tokens)]


def scan_(a_blc: Tensor, x_blc: Tensor, h_bc: Tensor | None) -> Tensor:
    """Turn x into h in place. h_bc: the state before the block, None for zero. Returns the last state."""
    for a_bc, x_bc in zip(a_blc.unbind(1), x_blc.unbind(1), strict=True):
        h_bc = x_bc if h_bc is None else x_bc.addcmul_(a_bc, h_bc)
    assert h_bc is not None, "a block has a token"
    return h_bc


def scan_gradient_(a_blc: Tensor, dh_blc: Tensor, after_bc: Tensor | None) -> Tensor:
    """Turn dh into the gradient of x in place, from a block's end to its start.

    after_bc: what this returned for the block after, None at the sequence's end.
    """
    a_l, dh_l = a_blc.unbind(1), dh_blc.unbind(1)
    if after_bc is not None:
        dh_l[-1].add_(after_bc)
    for t in reversed(range(len(dh_l) - 1)):
        dh_l[t].addcmul_(a_l[t + 1], dh_l[t + 1])
    return a_l[0] * dh_l[0]
