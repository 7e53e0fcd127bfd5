"""What every mixer is.

Shape suffixes: b batch, l length, t tokens so far, d d_model, c channels.
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
    """What a mixer needs to know beyond its own fields.

    eps, unit_offset: of the model's norms, which norms inside mixers follow unless their spec says otherwise.
    """

    d_model: int
    eps: float = 1e-5
    kernels: Kernels = field(default_factory=Kernels)
    unit_offset: bool = False


@dataclass
class Call:
    """What one pass through a model carries beside the hidden states.

    mask: False at padding; None where there is none. Over a sequence (batch, length); in a step (batch,
    tokens so far, this one included). Padding stands before a sequence's first token. streams: what layers
    told the ones after them. losses: what training adds to its loss, one scalar a term. donated: in a step,
    that nobody needs the states given any more, and that their memory may be written over.
    """

    mask: Tensor | None = None
    streams: dict[str, Any] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    donated: bool = False


def masked(x_blc: Tensor, call: Call | None) -> Tensor:
    """Zero at padding; what comes in where there is none. Over sequences: a step never takes padding."""
    if call is None or call.mask is None:
        return x_blc
    return x_blc * call.mask.unsqueeze(-1).to(x_blc.dtype)


class Mixer(nn.Module, ABC):
    """One layer's function f: (batch, length, input width) -> (batch, length, d_model), causal, bare of norm
    and residual.

    Built from its resolved spec. With `project` false it has no output projection and returns its inner
    features (batch, length, inner_width). A mixer's state is a tuple of tensors (and plain numbers) that
    `step` replaces, never changes, unless it was donated: an old state stays valid. Padding leaves no trace
    in it. On a GPU steps are recorded where a state is of tensors that keep their shapes, and of what
    `mixers.cache` has for those that grow.

    rounds_input: whether it reads its input in matmuls alone, which autocast rounds anyway. recordable:
    whether what it launches on a GPU depends on its input's shape alone, not on what is in it.
    telling: for each role in which other layers read this one, the stream that it writes. reading: for each
    role in which this one reads another, the stream that holds it. The compiler fills both.
    """

    rounds_input = True
    recordable = True

    def __init__(self, spec: Any, around: Surroundings, project: bool = True):
        super().__init__()
        self.spec = spec
        self.project = project
        self.telling: dict[str, str] = {}
        self.reading: dict[str, str] = {}

    @abstractmethod
    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        """The whole sequence at once."""

    @abstractmethod
    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, Any]:
        """The whole sequence, and the state after its last token."""

    @abstractmethod
    def step(self, x_bd: Tensor, state: Any, call: Call | None = None) -> tuple[Tensor, Any]:
        """One more token."""

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""

    @property
    def by_itself(self) -> bool:
        """Whether a step launches the same kernels on any token, and neither reads nor tells other layers."""
        return self.recordable and not (self.telling or self.reading)

    def tell(self, call: Call | None, role: str, value: Any) -> None:
        """Leave `value` for the layers that read this one as `role`, if there are any."""
        if call is not None and role in self.telling:
            call.streams[self.telling[role]] = value

    def told(self, call: Call | None, role: str) -> Any:
        """What the layer that this one reads as `role` has left."""
        assert call is not None, "a layer that reads another runs in a model"
        return call.streams[self.reading[role]]


class Stateless(Mixer):
    """A mixer that looks at one token at a time."""

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, Any]:
        return self(x_bld, call), ()

    def step(self, x_bd: Tensor, state: Any, call: Call | None = None) -> tuple[Tensor, Any]:
        return self(x_bd, call), ()


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Every tensor of a (nested) state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple | dict):
        for part in state.values() if isinstance(state, dict) else state:
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
