"""What recordings share and copy (their replays: test_steps)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from archsearch.compiler.recording import Buffers, Recording, first_cause, pool_of, tables_of
from compiler.stepping import Again


class User:
    """In the place of a recording."""


def test_recordings_of_a_stream_share_memory_while_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = itertools.count()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    first, users = pool_of("stream")
    kept = User()
    users.add(kept)
    assert pool_of("stream")[0] == first
    assert pool_of("another")[0] != first
    del kept
    assert pool_of("stream")[0] not in (first, pool_of("another")[0])


def test_tensors_of_several_dtypes_and_strides_are_copied() -> None:
    given = [
        torch.randn(3, 4),
        torch.randn(4, 3).mT,
        torch.arange(5),
        torch.randn(2).bfloat16(),
        torch.ones(0),
        torch.randn(3, 4),
    ]
    held = [torch.zeros_like(tensor) for tensor in given]
    buffers = Buffers(held)
    buffers.fill(given)
    assert all(torch.equal(a, b) for a, b in zip(held, given, strict=True))
    copies = buffers.copies()
    held[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip(copies, given, strict=True))
    assert copies[0].untyped_storage().data_ptr() == copies[5].untyped_storage().data_ptr()


def test_tables_are_what_layers_keep_beside_weights() -> None:
    layer = torch.nn.BatchNorm1d(2)
    table = torch.ones(3)
    layer._cached = {"key": (table, None)}
    assert [id(t) for t in tables_of([torch.nn.Sequential(layer)])] == [id(table)]


def test_the_first_cause_is_named_in_a_line() -> None:
    def fails() -> None:
        try:
            raise RuntimeError("not permitted\nsearch for it")
        finally:
            raise ValueError("its end")

    with pytest.raises(ValueError) as caught:
        fails()
    assert first_cause(caught.value) == "RuntimeError: not permitted"


def test_states_may_be_written_in_place_handed_on_and_read_by_the_output(recorded: type[Again]) -> None:
    first = [torch.zeros(2), *torch.arange(8.0).view(4, 2)]
    runs: list[bool] = []

    def run(given: list[Tensor]) -> list[Tensor]:
        runs.append(recorded.running)
        _, a, b, c, d = given
        return [b, c, a, d.add_(1), c + b]  # the output is a state as it was

    for donated in (False, True):
        runs.clear()
        step = Recording(run, first)
        assert runs == [False, True]  # whatever is compiled or tuned is so before it is recorded
        x, states = first[0], first[1:]
        expected = [t.clone() for t in states]
        for _ in range(4):
            y, states = step(x, states, donated=donated)
            a, b, c, d = expected
            assert torch.equal(y, b)
            expected = [c, a, d + 1, c + b]
            assert all(map(torch.equal, states, expected))
