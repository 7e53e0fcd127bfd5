"""The contract of every merge that is listed: a model of one parallel block, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archsearch.compiler.merges import MERGE_MODULES
from archsearch.mixers.base import Call
from archsearch.spec import model_cost
from archsearch.spec.merges import MERGES
from contract.building import (
    LENGTHS,
    MERGE_CASES,
    ids_of,
    label,
    model_of,
    parallel_spec,
    relative,
)

every_merge = pytest.mark.parametrize(("kind", "fields", "branches"), MERGE_CASES, ids=label)


def test_every_merge_has_a_module() -> None:
    assert set(MERGE_MODULES) == set(MERGES)


@every_merge
def test_steps_continue_a_prefill_as_one_forward_would(
    kind: str, fields: dict[str, Any], branches: list[Any]
) -> None:
    spec = parallel_spec(kind, fields, branches)
    model = model_of(spec)
    for length in LENGTHS:
        ids_bl = ids_of(spec, 2, length)
        with torch.no_grad():
            truth = model(ids_bl)
            for prefilled in {1, length // 2 or 1}:
                logits, state = model.prefill(ids_bl[:, :prefilled])
                outputs = list(logits.unbind(1))
                for t in range(prefilled, length):
                    logits, state = model.step(ids_bl[:, t], state)
                    outputs.append(logits)
                assert relative(torch.stack(outputs, 1), truth) <= 1e-10


@every_merge
def test_left_padding_leaves_no_trace(kind: str, fields: dict[str, Any], branches: list[Any]) -> None:
    spec = parallel_spec(kind, fields, branches)
    model, ids_bl, starts = model_of(spec), ids_of(spec, 3, 70), (0, 5, 66)
    mask_bl = torch.arange(70) >= torch.tensor(starts)[:, None]
    with torch.no_grad():
        together, state = model.prefill(ids_bl, Call(mask_bl))
        stepped, _ = model.step(ids_bl[:, 0], state)
        for row, start in enumerate(starts):
            alone, alone_state = model.prefill(ids_bl[row : row + 1, start:])
            assert relative(together[row, start:], alone[0]) <= 1e-10
            after, _ = model.step(ids_bl[row : row + 1, 0], alone_state)
            assert relative(stepped[row : row + 1], after) <= 1e-10


@every_merge
def test_cost_is_that_of_the_module(kind: str, fields: dict[str, Any], branches: list[Any]) -> None:
    spec = parallel_spec(kind, fields, branches)
    model = model_of(spec)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec).total.params
    for dtype in ("float64", "float32", "bfloat16"):
        typed = model.to(getattr(torch, dtype))
        for context in (1, 4, 5, 70):
            with torch.no_grad():
                _, state = typed.prefill(ids_of(spec, 2, context))
            assert state.bytes() == 2 * model_cost(spec, context, dtype).total.state_bytes


@every_merge
@pytest.mark.parametrize("at", [1, 64, 99])
def test_the_past_does_not_see_the_future(
    kind: str, fields: dict[str, Any], branches: list[Any], at: int
) -> None:
    spec = parallel_spec(kind, fields, branches)
    model = model_of(spec)
    ids_bl = ids_of(spec, 1, 100)
    other_bl = torch.cat([ids_bl[:, :at], (ids_bl[:, at:] + 1) % spec.vocab], dim=1)
    with torch.no_grad():
        truth, found = model(ids_bl), model(other_bl)
    assert relative(found[:, :at], truth[:, :at]) <= 1e-12
    assert relative(found[:, at:], truth[:, at:]) > 1e-6


@every_merge
def test_every_parameter_learns(kind: str, fields: dict[str, Any], branches: list[Any]) -> None:
    spec = parallel_spec(kind, fields, branches)
    model = model_of(spec)
    logits = model(ids_of(spec, 2, 70))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_of(spec, 2, 70, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
