"""State-space layers of the Mamba family."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import RECURRENT_ITEMSIZE, Layer, Size, Unbounded


class Mamba1(Layer):
    """Mamba-1, the selective state space (arXiv 2312.00752).

    d_state: state size a channel. expand: inner width / d_model. dt_rank: width that step sizes pass through;
    default: d_model / 16, rounded up. d_conv: width of the causal depthwise convolution. inner_norm: RMS norm
    of dt (before its projection), B and C: none (Mamba), without weights (`rms`: FalconMamba, arXiv
    2410.05355) or with them (`weighted`: Jamba, arXiv 2403.19887). inner_norm_eps: of that norm; default:
    the model's. conv_bias: of the convolution. bias: of the input and output projections. dt_min, dt_max:
    range of the initial step sizes, log-uniform. dt_floor: the least initial step size. dt_init: weights of
    the step sizes' projection start uniformly within dt_rank ** -0.5 of zero, or all at that value. heads:
    groups of neighbouring channels that choose dt, B and C each by themselves, from their own channels alone
    (Zamba, arXiv 2405.16712).
    """

    kind = "mamba1"
    family = "ssm"
    symbol = "S"
    glyph = "S"
    tells = frozenset({"memory"})

    d_state: Size = 16
    expand: float = Field(default=2, gt=0, le=1 << 12)
    dt_rank: Size | None = None
    d_conv: int = Field(default=4, ge=2, le=64)
    inner_norm: Literal["none", "rms", "weighted"] = "none"
    inner_norm_eps: float | None = Field(default=None, gt=0)
    conv_bias: bool = True
    bias: bool = False
    dt_min: float = Field(default=1e-3, gt=0)
    dt_max: float = Field(default=0.1, gt=0)
    dt_floor: float = Field(default=1e-4, gt=0)
    dt_init: Literal["random", "constant"] = "random"
    heads: Size = 1

    def resolve(self, d_model: int) -> Mamba1:
        inner = self.inner_width(d_model)
        if not inner or not math.isclose(self.expand * d_model, inner):
            raise FieldError("expand", f"expand {self.expand:g} x d_model {d_model} is not a whole number")
        if inner % self.heads:
            raise FieldError("heads", f"{self.heads} heads do not divide the inner width {inner}")
        if self.dt_min > self.dt_max:
            raise FieldError("dt_min", f"dt_min {self.dt_min:g} is above dt_max {self.dt_max:g}")
        # Where nothing is normed, layers that differ in this alone are the same layer.
        eps = self.inner_norm_eps if self.inner_norm != "none" else None
        dt_rank = self.dt_rank or -(-d_model // 16)
        return self.model_copy(update={"dt_rank": dt_rank, "inner_norm_eps": eps})

    def inner_width(self, d_model: int) -> int:
        # Rounded: 1.1 x 10 is 11.000000000000002.
        return round(self.expand * d_model)

    def parameter_width(self) -> int:
        """What a token chooses for itself, a head: dt (by its rank), B and C."""
        assert self.dt_rank, "resolve the layer first"
        return self.dt_rank + 2 * self.d_state

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (2 * self.inner_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        inner, chosen = self.inner_width(d_model), self.parameter_width()
        count = 2 * inner * (self.input_width(d_model) + (1 if self.bias else 0))
        count += inner * self.d_conv + (inner if self.conv_bias else 0)
        count += inner * chosen + (chosen if self.inner_norm == "weighted" else 0)
        count += inner * ((self.dt_rank or 0) + 1)
        count += inner * self.d_state + inner
        return count + (inner * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        inner = self.inner_width(d_model)
        into = 2 * inner * (2 * self.input_width(d_model) + self.parameter_width() + (self.dt_rank or 0))
        out = 2 * inner * d_model if project else 0
        return into + out + 2 * inner * self.d_conv + 5 * inner * self.d_state

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        conv = (self.d_conv - 1) * itemsize
        return self.inner_width(d_model) * (conv + self.d_state * max(RECURRENT_ITEMSIZE, itemsize))


class Mamba2(Layer):
    """Mamba-2, the state-space dual (arXiv 2405.21060).

    d_state: state size a channel. expand: inner width / d_model. heads: in place of expand, so that the inner
    width is heads x head_dim. head_dim: channels a head. groups: B and C are shared by heads / groups heads.
    multipliers: constant factors of z, x, B, C and dt as they leave the input projection (Falcon-H1). d_conv:
    width of the causal depthwise convolution on x, B and C. gated_norm: RMS norm after the gate, before it,
    or none. norm_groups: groups of channels that it norms each by themselves; default: groups. norm_eps: of
    that norm; default: the model's. dt_min, dt_max: range of the initial step sizes, log-uniform. dt_floor:
    the least initial step size. dt_limit: bounds that the step size is clamped to at run time. A_init: range
    of the initial decay rates. conv_bias: of the convolution. bias: of both projections.
    """

    kind = "mamba2"
    family = "ssm"
    symbol = "M"
    glyph = "M"
    tells = frozenset({"memory"})
    alternatives = (frozenset({"expand", "heads"}),)

    d_state: Size = 128
    expand: float = Field(default=2, gt=0, le=1 << 12)
    heads: Size | None = None
    head_dim: Size = 64
    groups: Size = 1
    d_conv: int = Field(default=4, ge=2, le=64)
    conv_bias: bool = True
    bias: bool = False
    gated_norm: Literal["after", "before", "none"] = "after"
    norm_groups: Size | None = None
    norm_eps: float | None = Field(default=None, gt=0)
    multipliers: tuple[float, float, float, float, float] | None = Field(default=None, strict=False)
    dt_min: float = Field(default=1e-3, gt=0)
    dt_max: float = Field(default=0.1, gt=0)
    dt_floor: float = Field(default=1e-4, gt=0)
    dt_limit: tuple[float, Unbounded] = Field(default=(0.0, math.inf), strict=False)
    A_init: tuple[float, float] = Field(default=(1.0, 16.0), strict=False)

    def resolve(self, d_model: int) -> Mamba2:
        if self.heads is not None:
            return self._by_heads(self.heads, d_model).resolve(d_model)
        inner = self.inner_width(d_model)
        if not inner or not math.isclose(self.expand * d_model, inner):
            raise FieldError("expand", f"expand {self.expand:g} x d_model {d_model} is not a whole number")
        if inner % self.head_dim:
            raise FieldError(
                "head_dim",
                f"head_dim {self.head_dim} does not divide the inner width {inner} "
                f"(expand {self.expand:g} x d_model {d_model})",
            )
        heads = self.head_count(d_model)
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
        norm_groups = self.norm_groups or self.groups
        if inner % norm_groups:
            raise FieldError(
                "norm_groups", f"{norm_groups} norm_groups do not divide the inner width {inner}"
            )
        # Layers that differ only in what nothing reads, or in whether a default is said, are the same layer.
        normed = self.gated_norm != "none"
        update = {
            "norm_groups": norm_groups if normed and norm_groups != self.groups else None,
            "norm_eps": self.norm_eps if normed else None,
        }
        return self.model_copy(update=update)

    def _by_heads(self, heads: int, d_model: int) -> Mamba2:
        """The same layer with `expand` in place of `heads`."""
        if "expand" in self.model_fields_set:
            raise FieldError("heads", "heads and expand say the same thing; give one of them")
        return self.model_copy(update={"heads": None, "expand": heads * self.head_dim / d_model})

    def inner_width(self, d_model: int) -> int:
        # Rounded: 1.1 x 10 is 11.000000000000002.
        return round(self.expand * d_model)

    def head_count(self, d_model: int) -> int:
        return self.inner_width(d_model) // self.head_dim

    def conv_width(self, d_model: int) -> int:
        """Channels of x, B and C, which pass the convolution together."""
        return self.inner_width(d_model) + 2 * self.groups * self.d_state

    def in_width(self, d_model: int) -> int:
        """Outputs of the input projection: z, x, B, C and dt."""
        return self.inner_width(d_model) + self.conv_width(d_model) + self.head_count(d_model)

    def segments(self, d_model: int) -> tuple[int, int, int, int, int]:
        """Outputs of the input projection, apart: z, x, B, C, dt."""
        inner, shared = self.inner_width(d_model), self.groups * self.d_state
        return inner, inner, shared, shared, self.head_count(d_model)

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (self.in_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        inner, conv, heads = self.inner_width(d_model), self.conv_width(d_model), self.head_count(d_model)
        count = self.input_width(d_model) * self.in_width(d_model) + conv * self.d_conv + 3 * heads
        count += conv if self.conv_bias else 0
        count += self.in_width(d_model) if self.bias else 0
        count += inner if self.gated_norm != "none" else 0
        return count + (inner * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        inner = self.inner_width(d_model)
        matmul = 2 * self.input_width(d_model) * self.in_width(d_model)
        matmul += 2 * inner * d_model if project else 0
        return matmul + 2 * self.conv_width(d_model) * self.d_conv + 5 * inner * self.d_state

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        conv = self.conv_width(d_model) * (self.d_conv - 1) * itemsize
        return conv + self.inner_width(d_model) * self.d_state * max(RECURRENT_ITEMSIZE, itemsize)
