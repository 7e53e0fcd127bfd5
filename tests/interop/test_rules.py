"""Rules run backwards: the source's weights come back to the last bit."""

from __future__ import annotations

import pytest
import torch

from archsearch.interop import from_transformers
from archsearch.interop.importing import plan
from archsearch.interop.rules import CONCAT, CONV, FLAT, HEADS, SAME, STACK, Join, rows

from .sources import FAMILIES, source

EXAMPLES: dict[str, tuple[Join, list[tuple[int, ...]]]] = {
    "same": (SAME, [(3, 2)]),
    "concat": (CONCAT, [(3, 2), (1, 2), (4, 2)]),
    "conv": (CONV, [(5, 1, 4)]),
    "flat": (FLAT, [(1, 3, 1)]),
    "heads": (HEADS, [(3, 2, 5)]),
    "stack": (STACK, [(3, 2), (3, 2)]),
    "rows": (rows(torch.tensor([4, 0, 3, 1, 2])), [(2, 3), (3, 3)]),
}


@pytest.mark.parametrize(("join", "shapes"), EXAMPLES.values(), ids=EXAMPLES)
def test_join(join: Join, shapes: list[tuple[int, ...]]) -> None:
    theirs = [torch.randn(shape) for shape in shapes]
    back = join.apart(join.together(theirs), [tensor.shape for tensor in theirs])
    assert len(back) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(back, theirs, strict=True))


def test_rows_go_where_the_order_says() -> None:
    order = torch.tensor([2, 0, 1])
    assert rows(order).together([torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0]])]).flatten().tolist() == [
        2.0,
        0.0,
        1.0,
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str) -> None:
    hf = source(family, 0)
    theirs = hf.state_dict()
    ours = from_transformers(hf)[1].state_dict()
    for rule in plan(hf.config).rules:
        if rule.ours is None:
            continue
        back = rule.join.apart(ours[rule.ours], [theirs[name].shape for name in rule.theirs])
        for name, tensor in zip(rule.theirs, back, strict=True):
            assert torch.equal(tensor, theirs[name]), name
