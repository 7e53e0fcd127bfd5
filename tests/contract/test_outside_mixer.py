"""A mixer that someone else writes: one spec class, one module, one line in the table."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from archsearch.compiler import compile_model
from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear
from archsearch.mixers.table import MIXERS
from archsearch.spec import Layer, ModelSpec, SpecError, model_cost, parse_spec
from archsearch.spec.entries import layer_kinds
from contract.building import ids_of, model_of, relative


def define() -> tuple[type[Layer], type[Mixer]]:
    """Exponential averages of the input, one rate a channel: y_t = W s_t, s_t = r s_{t-1} + (1 - r) x_t."""

    class Averages(Layer):
        """Exponential averages.

        rate: initial weight of the past.
        """

        kind: ClassVar[str] = "averages"
        family: ClassVar[Literal["ssm", "attention", "channel", "parallel"]] = "ssm"
        symbol: ClassVar[str] = "E"

        rate: float = Field(default=0.5, gt=0, lt=1)

        def inner_width(self, d_model: int) -> int:
            return d_model

        def params(self, d_model: int, project: bool = True) -> int:
            return d_model + (d_model * d_model if project else 0)

        def flops(self, d_model: int, context: int, project: bool = True) -> float:
            return 3 * d_model + (2 * d_model * d_model if project else 0)

        def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
            return d_model * itemsize

    class AveragesMixer(Mixer):
        def __init__(self, spec: Any, around: Surroundings, project: bool = True):
            super().__init__(spec, around, project)
            self.rate = nn.Parameter(torch.empty(around.d_model))
            self.out = nn.Linear(around.d_model, around.d_model, bias=False) if project else None

        def reset_parameters(self, generator: torch.Generator) -> None:
            nn.init.constant_(self.rate, self.spec.rate)
            if self.out is not None:
                init_linear(self.out, generator)

        def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
            return self.prefill(x_bld)[0]

        def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, Any]:
            state, outputs = (torch.zeros_like(x_bld[:, 0]),), []
            for x_bd in x_bld.unbind(1):
                y_bd, state = self.step(x_bd, state)
                outputs.append(y_bd)
            return torch.stack(outputs, 1), state

        def step(self, x_bd: Tensor, state: Any, call: Call | None = None) -> tuple[Tensor, Any]:
            average = self.rate * state[0] + (1 - self.rate) * x_bd
            return (average if self.out is None else self.out(average)), (average,)

    return Averages, AveragesMixer


@pytest.fixture
def averages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    layer, mixer = define()
    monkeypatch.setitem(MIXERS, layer.kind, mixer)
    yield
    monkeypatch.undo()
    del layer, mixer
    # The language knows a kind for as long as its class lives.
    gc.collect()


HYBRID = """\
vocab_size: 23
d_model: 16
defaults: {averages: {rate: 0.9}}
layers:
  - averages: {id: first}
  - parallel:
      branches: [averages, attention: {heads: 2}]
      merge: {concat: {projection: shared}}
  - pattern: E-(E|*)
  - share: first
"""


@pytest.mark.usefixtures("averages")
def test_is_read_costed_compiled_and_stepped() -> None:
    spec = parse_spec(HYBRID)
    model = model_of(spec)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec).total.params
    ids_bl = ids_of(spec, 2, 9)
    with torch.no_grad():
        truth = model(ids_bl)
        logits, state = model.prefill(ids_bl[:, :4])
        outputs = list(logits.unbind(1))
        for t in range(4, 9):
            logits, state = model.step(ids_bl[:, t], state)
            outputs.append(logits)
    assert relative(torch.stack(outputs, 1), truth) <= 1e-10
    assert state.bytes() == 2 * model_cost(spec, 9, "float64").total.state_bytes
    fresh = compile_model(spec)
    assert (fresh.layers[0].layer.rate == 0.9).all()


@pytest.mark.usefixtures("averages")
def test_survives_writing_and_counts_in_the_hash() -> None:
    spec = parse_spec(HYBRID)
    assert ModelSpec.model_validate(spec.resolved()).hash == spec.hash
    assert parse_spec(HYBRID.replace("0.9", "0.8")).hash != spec.hash


@pytest.mark.usefixtures("averages")
def test_its_mistakes_are_located_and_its_name_is_offered() -> None:
    with pytest.raises(SpecError, match=r":3:23: defaults.averages.rate: must be less than 1"):
        parse_spec(HYBRID.replace("0.9", "1.5"))
    with pytest.raises(SpecError, match=r"unknown layer 'average'; did you mean 'averages'\?"):
        parse_spec(HYBRID.replace("- averages:", "- average:"))


def test_is_forgotten_with_its_class() -> None:
    assert "averages" not in layer_kinds()
