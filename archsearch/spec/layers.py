"""One class a layer kind: its fields, and its exact cost.

Defining a subclass of `Layer` here is what makes its kind known to the language; the torch module that
computes it is listed in `archsearch.mixers.table`.

Costs are exact and need no torch:
  params       trainable numbers, equal to the built module's count
  flops        forward floating-point operations for one token, averaged over a sequence of `context`
               tokens; a multiply-add is 2. Counted: projections, convolutions, attention scores and
               values, and 5 operations an element of recurrent state (decay, input, sum, read, sum).
               Not counted: norms, activations and other elementwise work.
  state_bytes  what the layer's cache holds for one sequence after `context` tokens
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from archsearch.spec.errors import FieldError

Norm = Literal["pre", "post", "sandwich", "none"]
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
    norm: where the block normalises: its input (pre), its output (post), both (sandwich), nowhere (none).
      Default: pre, except for the first layer of a parallel branch, whose input is normed already.
    id: a name by which `share` refers to this layer.
    """

    kind: ClassVar[str] = ""
    family: ClassVar[Literal["ssm", "attention", "channel", "parallel"]]
    symbol: ClassVar[str] = ""
    """One character for `pattern` strings (Megatron's letters where it has one)."""
    glyph: ClassVar[str] = "?"
    """One character for drawings."""
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Fields that say the same thing: a layer that gives one takes no default for the others."""

    residual: bool | None = None
    norm: Norm | None = None
    id: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.-]*$")

    def resolve(self, d_model: int) -> Any:
        """A copy with every derived default filled in. Raises `FieldError` where a field cannot hold."""
        return self

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


class Rope(Spec):
    """Rotary position embedding (arXiv 2104.09864): pairs of channels (i, i + rotary/2) are rotated.

    theta: base of the geometric frequencies. fraction: share of each head's channels that is rotated.
    """

    theta: float = Field(default=10_000.0, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)

    def rotary_dim(self, head_dim: int) -> int:
        return int(head_dim * self.fraction)


def _or_none(schema: dict[str, Any]) -> None:
    """In JSON Schema too, `none` is a word for null."""
    schema["anyOf"].append({"const": "none"})


class Attention(Layer):
    """Causal softmax attention with grouped queries (arXiv 2305.13245).

    heads: query heads; default: d_model / 64, at least 1. kv_heads: default: heads. head_dim: default:
    d_model / heads. rope: `null` for none (NoPE). window: each token sees itself and the window - 1 before
    it. qk_norm: RMS norm of queries and keys, over each head or the full width. conv: width of a causal
    depthwise convolution on queries, keys and values. bias: on queries, keys and values. output_bias: on
    the output projection. scale: of the scores; default: head_dim ** -0.5.
    """

    kind = "attention"
    family = "attention"
    symbol = "*"
    glyph = "A"

    heads: Size | None = None
    kv_heads: Size | None = None
    head_dim: Size | None = None
    rope: Rope | None = Field(default=Rope(), json_schema_extra=_or_none)
    window: int | None = Field(default=None, ge=1, json_schema_extra=_or_none)
    qk_norm: Literal["head", "full"] | None = Field(default=None, json_schema_extra=_or_none)
    conv: int | None = Field(default=None, ge=2, le=64, json_schema_extra=_or_none)
    bias: bool = False
    output_bias: bool = False
    scale: float | None = Field(default=None, gt=0)

    @field_validator("rope", "qk_norm", "window", "conv", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    def resolve(self, d_model: int) -> Attention:
        heads = self.heads or max(1, d_model // 64)
        kv_heads = self.kv_heads or heads
        if self.head_dim is None and d_model % heads:
            raise FieldError("heads", f"{heads} heads do not divide d_model {d_model}; give head_dim too")
        head_dim = self.head_dim or d_model // heads
        if heads % kv_heads:
            raise FieldError("kv_heads", f"{kv_heads} kv_heads do not divide {heads} heads")
        if self.rope and (self.rope.rotary_dim(head_dim) % 2 or not self.rope.rotary_dim(head_dim)):
            raise FieldError(
                "rope",
                f"rotates {self.rope.rotary_dim(head_dim)} of {head_dim} channels a head; expected an "
                "even number above 0",
            )
        scale = self.scale or head_dim**-0.5
        return self.model_copy(
            update={"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": scale}
        )

    def _widths(self) -> tuple[int, int]:
        assert self.heads is not None, "resolve the layer first"
        assert self.kv_heads is not None
        assert self.head_dim is not None
        return self.heads * self.head_dim, self.kv_heads * self.head_dim

    def inner_width(self, d_model: int) -> int:
        return self._widths()[0]

    def params(self, d_model: int, project: bool = True) -> int:
        q, kv = self._widths()
        count = d_model * (q + 2 * kv) + (q + 2 * kv if self.bias else 0)
        count += (q + 2 * kv) * self.conv if self.conv else 0
        if self.qk_norm == "head":
            count += 2 * (self.head_dim or 0)
        elif self.qk_norm == "full":
            count += q + kv
        return count + (q * d_model + (d_model if self.output_bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        q, kv = self._widths()
        matmul = 2 * d_model * (q + 2 * kv) + (2 * q * d_model if project else 0)
        conv = 2 * (q + 2 * kv) * self.conv if self.conv else 0
        return matmul + conv + 4 * q * mean_keys(context, self.window)

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        q, kv = self._widths()
        held = min(context, self.window) if self.window else context
        conv = (q + 2 * kv) * (self.conv - 1) if self.conv else 0
        return (2 * kv * held + conv) * itemsize


class Mamba2(Layer):
    """Mamba-2, the state-space dual (arXiv 2405.21060).

    d_state: state size a channel. expand: inner width / d_model. head_dim: channels a head. groups: B and C
    are shared by heads / groups heads. d_conv: width of the causal depthwise convolution on x, B and C.
    gated_norm: RMS norm after the gate, before it, or none. dt_min, dt_max: range of the initial step sizes,
    log-uniform. dt_floor: the least initial step size. dt_limit: bounds that the step size is clamped to at
    run time. A_init: range of the initial decay rates. conv_bias: of the convolution. bias: of both
    projections.
    """

    kind = "mamba2"
    family = "ssm"
    symbol = "M"
    glyph = "M"

    d_state: Size = 128
    expand: float = Field(default=2, gt=0, le=1 << 12)
    head_dim: Size = 64
    groups: Size = 1
    d_conv: int = Field(default=4, ge=2, le=64)
    conv_bias: bool = True
    bias: bool = False
    gated_norm: Literal["after", "before", "none"] = "after"
    dt_min: float = Field(default=1e-3, gt=0)
    dt_max: float = Field(default=0.1, gt=0)
    dt_floor: float = Field(default=1e-4, gt=0)
    dt_limit: tuple[float, Unbounded] = Field(default=(0.0, math.inf), strict=False)
    A_init: tuple[float, float] = Field(default=(1.0, 16.0), strict=False)

    def resolve(self, d_model: int) -> Mamba2:
        inner = self.inner_width(d_model)
        if not inner or not math.isclose(self.expand * d_model, inner):
            raise FieldError("expand", f"expand {self.expand:g} x d_model {d_model} is not a whole number")
        if inner % self.head_dim:
            raise FieldError(
                "head_dim",
                f"head_dim {self.head_dim} does not divide the inner width {inner} "
                f"(expand {self.expand:g} x d_model {d_model})",
            )
        heads = inner // self.head_dim
        if heads % self.groups:
            raise FieldError("groups", f"{self.groups} groups do not divide {heads} heads")
        if self.dt_min > self.dt_max:
            raise FieldError("dt_min", f"dt_min {self.dt_min:g} is above dt_max {self.dt_max:g}")
        for name in ("dt_limit", "A_init"):
            low, high = getattr(self, name)
            if not 0 <= low < high and not (name == "A_init" and 0 < low <= high):
                raise FieldError(
                    name, f"expected [low, high] with 0 <= low < high, found [{low:g}, {high:g}]"
                )
        if self.A_init[0] <= 0:
            raise FieldError("A_init", f"decay rates must be above 0, found {self.A_init[0]:g}")
        return self

    def inner_width(self, d_model: int) -> int:
        # Rounded: 1.1 x 10 is 11.000000000000002.
        return round(self.expand * d_model)

    def heads(self, d_model: int) -> int:
        return self.inner_width(d_model) // self.head_dim

    def conv_width(self, d_model: int) -> int:
        """Channels of x, B and C, which pass the convolution together."""
        return self.inner_width(d_model) + 2 * self.groups * self.d_state

    def in_width(self, d_model: int) -> int:
        """Outputs of the input projection: z, x, B, C and dt."""
        return self.inner_width(d_model) + self.conv_width(d_model) + self.heads(d_model)

    def params(self, d_model: int, project: bool = True) -> int:
        inner, conv, heads = self.inner_width(d_model), self.conv_width(d_model), self.heads(d_model)
        count = d_model * self.in_width(d_model) + conv * self.d_conv + 3 * heads
        count += conv if self.conv_bias else 0
        count += self.in_width(d_model) if self.bias else 0
        count += inner if self.gated_norm != "none" else 0
        return count + (inner * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        inner = self.inner_width(d_model)
        matmul = 2 * d_model * self.in_width(d_model) + (2 * inner * d_model if project else 0)
        return matmul + 2 * self.conv_width(d_model) * self.d_conv + 5 * inner * self.d_state

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        conv = self.conv_width(d_model) * (self.d_conv - 1) * itemsize
        return conv + self.inner_width(d_model) * self.d_state * max(RECURRENT_ITEMSIZE, itemsize)


Activation = Literal["swiglu", "geglu", "gelu", "relu2", "silu"]
GATED = ("swiglu", "geglu")


class Mlp(Layer):
    """Two-layer channel mixer; gated (arXiv 2002.05202) for swiglu and geglu, relu2 as in arXiv 2109.08668.

    expand: hidden width / d_model; default: 4, or 8/3 rounded up to a multiple of 8 where the activation is
    gated. hidden: the hidden width itself, in place of expand. activation: between the two projections.
    bias: of both projections.
    """

    kind = "mlp"
    family = "channel"
    symbol = "-"
    glyph = "-"
    alternatives = (frozenset({"expand", "hidden"}),)

    expand: float | None = Field(default=None, gt=0, le=1 << 12)
    hidden: Size | None = None
    activation: Activation = "swiglu"
    bias: bool = False

    def resolve(self, d_model: int) -> Mlp:
        if self.hidden is not None and self.expand is not None:
            raise FieldError("hidden", "hidden and expand say the same thing; give one of them")
        if self.hidden is not None:
            hidden = self.hidden
        elif self.expand is not None:
            hidden = max(1, round(self.expand * d_model))
        else:
            hidden = -(-8 * d_model // 3 // 8) * 8 if self.gated else 4 * d_model
        return self.model_copy(update={"hidden": hidden, "expand": None})

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    def inner_width(self, d_model: int) -> int:
        assert self.hidden, "resolve the layer first"
        return self.hidden

    def params(self, d_model: int, project: bool = True) -> int:
        into = self.inner_width(d_model) * (2 if self.gated else 1)
        count = d_model * into + (into if self.bias else 0)
        return count + (self.inner_width(d_model) * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        hidden = self.inner_width(d_model)
        return 2 * d_model * hidden * ((2 if self.gated else 1) + (1 if project else 0))


def mean_keys(context: int, window: int | None) -> float:
    """Keys that a token of a causal sequence sees, averaged over its `context` positions."""
    if window is None or window >= context:
        return (context + 1) / 2
    return (window * (window + 1) / 2 + (context - window) * window) / context
