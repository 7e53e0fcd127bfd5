"""Blocks of tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from archsearch.mixers.blocks import blocks


@given(
    rows=st.integers(1, 6), columns=st.integers(1, 20), width=st.integers(1, 5), elements=st.integers(1, 200)
)
def test_blocks_cover_every_element_once_and_in_order(
    rows: int, columns: int, width: int, elements: int
) -> None:
    t = torch.zeros(rows, columns, width)
    seen: list[tuple[int, int]] = []
    for at in blocks(t, elements):
        assert t[at].numel() <= max(elements, width)
        t[at] += 1
        seen.append((at[0].start, at[1].start))
        assert at[0].stop <= rows
        assert at[1].stop <= columns
    assert bool((t == 1).all())
    assert seen == sorted(seen)


def test_without_a_block_to_fill_there_is_one() -> None:
    assert blocks(torch.zeros(3, 4, 5)) == [(slice(0, 3), slice(0, 4))]
    assert len(blocks(torch.zeros(3, 4, 5, device="meta"), 1)) == 1
