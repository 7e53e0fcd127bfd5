"""What every layer kind is.

Costs are exact and need no torch:
  params       trainable numbers, equal to the built module's count
  flops        forward floating-point operations for one token, averaged over a sequence of `context`
               tokens; a multiply-add is 2. Counted: projections, convolutions, attention scores and
               values, and 5 operations an element of recurrent state (decay, input, sum, read, sum), or as
               many as the layer says. Not counted: norms, activations and other elementwise work.
  state_bytes  what the layer's cache holds for one sequence after `context` tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Norm = Literal["pre", "post", "sandwich", "entry", "none"]
RECURRENT_ITEMSIZE = 4
"""Recurrent states are kept in float32 even where activations are narrower: they sum over the context."""


class Spec(BaseModel):
    """Base of everything a user writes: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


Size = Annotated[int, Field(ge=1, le=1 << 24)]
"""A width or a number of heads; the bound keeps a slip of the keyboard from asking for a world of memory."""
Unbounded = Annotated[float, Field(allow_inf_nan=True)]


class Layer(Spec):
    """A layer. As an entry of `layers` it is a residual block, x + f(norm(x)).

    residual: add the input to the output. Default: yes, except for the first layer of a parallel branch.
    norm: where the block normalises: f's input (pre), its output (post), both (sandwich), what enters the
      block, the residual included (entry: norm(x) + f(norm(x)), as in MiniMax), nowhere (none).
      Default: pre, except for the first layer of a parallel branch, whose input is normed already.
    in_scale, out_scale, skip_scale: constant factors of f's input, of its output, and of the residual.
    inputs: streams that f reads beside x, concatenated to it before the norm: `embedding`, or ids of layers
      above, whose blocks' outputs they are.
    lora: rank of a low-rank term of this use's own, added to the layer's input projection (arXiv 2106.09685).
    id: a name by which `share` and other layers refer to this layer.
    """

    kind: ClassVar[str] = ""
    family: ClassVar[Literal["ssm", "attention", "channel", "parallel", "sequential"]]
    symbol: ClassVar[str] = ""
    """One character for `pattern` strings (Megatron's letters where it has one)."""
    glyph: ClassVar[str] = ""
    """One character for drawings; by default the symbol, or the first letter of the kind."""
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Fields that say the same thing: a layer that gives one takes no default for the others."""
    references: ClassVar[Mapping[str, str]] = {}
    """Roles in which this kind reads another layer, and the field that holds that layer's id."""
    tells: ClassVar[frozenset[str]] = frozenset()
    """Roles in which other layers can read this kind."""
    takes_inputs: ClassVar[bool] = True
    """Whether `inputs` may widen what it reads."""

    residual: bool | None = None
    norm: Norm | None = None
    in_scale: float = 1.0
    out_scale: float = 1.0
    skip_scale: float = 1.0
    inputs: tuple[str, ...] = Field(default=(), strict=False)
    lora: Size | None = None
    id: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.-]*$")

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.glyph = cls.glyph or cls.symbol or cls.kind[:1].upper()

    def reading(self, sources: Mapping[str, Layer], d_model: int) -> Any:
        """A copy with what follows from the (resolved) layers it reads, by role; called before `resolve`.

        Raises `FieldError` where a field contradicts them.
        """
        return self

    def resolve(self, d_model: int) -> Any:
        """A copy with every derived default filled in. Raises `FieldError` where a field cannot hold."""
        return self

    def input_width(self, d_model: int) -> int:
        """Width of what the layer reads: the stream, and every further input."""
        return d_model * (1 + len(self.inputs))

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Input projections that `lora` adapts: the submodule's name -> widths adapted each by themselves."""
        return {}

    def inner_width(self, d_model: int) -> int:
        """Width of the features that the output projection reads."""
        raise NotImplementedError

    def params(self, d_model: int, project: bool = True) -> int:
        """Trainable numbers. `project`: with the layer's own output projection (resolved layers only)."""
        raise NotImplementedError

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        raise NotImplementedError

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return 0

    def active_params(self, d_model: int, project: bool = True) -> int:
        """Parameters that one token uses; fewer than `params` for mixtures of experts."""
        return self.params(d_model, project)
