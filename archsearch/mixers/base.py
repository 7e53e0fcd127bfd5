"""What every mixer is.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.mixers.kernels import Kernels


@dataclass(frozen=True)
class Surroundings:
    """What a mixer needs to know beyond its own fields."""

    d_model: int
    eps: float = 1e-5
    kernels: Kernels = field(default_factory=Kernels)


class Mixer(nn.Module, ABC):
    """One layer's function f: (batch, length, d_model) -> the same, causal, without norm or residual.

    Built from its resolved spec. With `project` false it has no output projection and returns its inner
    features (batch, length, inner_width). A mixer's state is a tuple of tensors (and plain numbers) that
    `step` replaces, never changes: an old state stays valid.
    """

    def __init__(self, spec: Any, around: Surroundings, project: bool = True):
        super().__init__()
        self.spec = spec
        self.project = project

    @abstractmethod
    def forward(self, x_bld: Tensor) -> Tensor:
        """The whole sequence at once."""

    @abstractmethod
    def prefill(self, x_bld: Tensor) -> tuple[Tensor, Any]:
        """The whole sequence, and the state after its last token."""

    @abstractmethod
    def step(self, x_bd: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One more token."""

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""


class Stateless(Mixer):
    """A mixer that looks at one token at a time."""

    def prefill(self, x_bld: Tensor) -> tuple[Tensor, Any]:
        return self(x_bld), ()

    def step(self, x_bd: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self(x_bd), ()


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Every tensor of a (nested) state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from tensors_in(part)


def state_bytes(state: Any) -> int:
    """Bytes that a state's tensors hold, over the whole batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(state))


def init_linear(linear: nn.Linear, generator: torch.Generator, gain: float = 1.0) -> None:
    """Uniform weights of variance gain^2 / (3 fan_in), torch's own default at gain 1; zero bias."""
    bound = gain * linear.in_features**-0.5
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        if linear.bias is not None:
            linear.bias.zero_()
