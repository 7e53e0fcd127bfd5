"""A mixer that someone else writes. As a pytest plugin it is listed before any test is collected."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear
from archsearch.mixers.table import MIXERS
from archsearch.spec import Layer


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


def pytest_configure(config: pytest.Config) -> None:
    layer, mixer = define()
    MIXERS[layer.kind] = mixer
    # The language knows a kind for as long as its class lives.
    config.stash[pytest.StashKey[type[Layer]]()] = layer
