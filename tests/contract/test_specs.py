"""Whatever spec is legal compiles, costs what it says, and steps as it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.compiler import compile_model
from archsearch.spec import ModelSpec, load_spec, model_cost
from contract.building import ids_of, model_of, relative
from contract.strategies import LONGEST, specs

LIBRARY = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))


def counted(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@settings(max_examples=500)
@given(
    value=specs(), context=st.integers(1, LONGEST), dtype=st.sampled_from(["float32", "float64", "bfloat16"])
)
def test_cost_of_any_spec_is_that_of_the_module(value: dict[str, Any], context: int, dtype: str) -> None:
    spec = ModelSpec.model_validate(value)
    model = compile_model(spec, dtype=getattr(torch, dtype))
    cost = model_cost(spec, context, dtype)
    assert counted(model) == cost.total.params
    with torch.no_grad():
        logits, state = model.prefill(ids_of(spec, 2, context))
    assert state.bytes() == 2 * cost.total.state_bytes
    assert logits.shape == (2, context, spec.vocab)


@settings(max_examples=60)
@given(value=specs(), prefilled=st.integers(1, 12), stepped=st.integers(1, 8))
def test_any_spec_steps_as_it_runs(value: dict[str, Any], prefilled: int, stepped: int) -> None:
    spec = ModelSpec.model_validate(value)
    model = model_of(spec)
    ids_bl = ids_of(spec, 2, prefilled + stepped)
    with torch.no_grad():
        truth = model(ids_bl)
        logits, state = model.prefill(ids_bl[:, :prefilled])
        outputs = list(logits.unbind(1))
        for t in range(prefilled, prefilled + stepped):
            logits, state = model.step(ids_bl[:, t], state)
            outputs.append(logits)
    assert relative(torch.stack(outputs, 1), truth) <= 1e-10
    assert state.bytes() == 2 * model_cost(spec, prefilled + stepped, "float64").total.state_bytes


@settings(max_examples=60)
@given(value=specs(), at=st.integers(1, 19))
def test_no_spec_sees_the_future(value: dict[str, Any], at: int) -> None:
    spec = ModelSpec.model_validate(value)
    model = model_of(spec)
    ids_bl = ids_of(spec, 1, 20)
    other_bl = torch.cat([ids_bl[:, :at], (ids_bl[:, at:] + 1) % spec.vocab], dim=1)
    with torch.no_grad():
        assert relative(model(other_bl)[:, :at], model(ids_bl)[:, :at]) <= 1e-12


@settings(max_examples=40)
@given(value=specs())
def test_gradients_of_any_spec_are_those_of_finite_differences(value: dict[str, Any]) -> None:
    """Along a random direction through all parameters at once: a path that is cut anywhere shows."""
    spec = ModelSpec.model_validate(value)
    model, ids_bl = model_of(spec), ids_of(spec, 1, 9)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(ids_bl)[0], ids_bl[0].roll(-1))

    def loss_along(h: float) -> float:
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += h * d
            found = loss().item()
            for parameter, d in zip(parameters, direction, strict=True):
                parameter -= h * d
        return found

    gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    # One step may be too coarse (the norm of a one-channel head is all but a sign), another too fine for
    # rounding; a wrong gradient agrees with none.
    differences = [(loss_along(h) - loss_along(-h)) / (2 * h) for h in (1e-6, 1e-7, 1e-8, 1e-9)]
    assert any(slope == pytest.approx(expected, rel=1e-3, abs=1e-3) for expected in differences), differences


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_the_library_costs_what_it_says(path: Path) -> None:
    spec = load_spec(path)
    model = compile_model(spec)
    assert counted(model) == model_cost(spec).total.params
    for context in (1, 33):
        with torch.no_grad():
            logits, state = model.prefill(ids_of(spec, 1, context))
        assert state.bytes() == model_cost(spec, context).total.state_bytes
        assert logits.isfinite().all()


def test_there_is_a_library() -> None:
    assert LIBRARY
