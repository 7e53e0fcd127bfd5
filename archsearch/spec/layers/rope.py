"""Rotary position embedding, and the ways to stretch it over longer contexts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from archsearch.spec.errors import FieldError, quoted
from archsearch.spec.layers.base import Spec

_SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "llama3": (("factor", "original_context"), ("low_freq_factor", "high_freq_factor")),
    "yarn": (("factor", "original_context"), ("attention_factor", "beta_fast", "beta_slow", "truncate")),
    "longrope": (("factors",), ("factor", "original_context", "attention_factor")),
}
"""Kind of scaling -> the fields that it needs, and those that it may have."""


def or_none(schema: dict[str, Any]) -> None:
    """In JSON Schema too, `none` is a word for null."""
    schema["anyOf"].append({"const": "none"})


class RopeScaling(Spec):
    """Lower frequencies, for contexts longer than `original_context`, that of the first training.

    kind: `linear` divides every frequency by `factor` (arXiv 2306.15595); `llama3` divides those that turn
    less than low_freq_factor times over the original context, keeps those that turn more than
    high_freq_factor times, and goes over smoothly in between (arXiv 2407.21783); `yarn` likewise, linearly
    in the channel between beta_fast and beta_slow turns, and scales the rotated channels (arXiv 2309.00071);
    `longrope` divides each frequency by its own number of `factors` (arXiv 2402.13753), always: a model that
    has a short and a long list is two models. factor: how many times longer contexts become. truncate: round
    yarn's bounds to whole channels. attention_factor: of the rotated channels of queries and keys; default:
    as the kind's paper derives it from `factor`.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float | None = Field(default=None, gt=0)
    original_context: int | None = Field(default=None, ge=2)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    truncate: bool = True
    attention_factor: float | None = Field(default=None, gt=0)
    factors: tuple[float, ...] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> RopeScaling:
        needed, optional = _SCALINGS[self.kind]
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{self.kind} scaling needs {name}")
        given = {
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        }
        stray = sorted(given - {"kind", *needed, *optional})
        if stray:
            raise ValueError(f"{self.kind} scaling has no {stray[0]}; it has {quoted([*needed, *optional])}")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor:g} must be below high_freq_factor "
                f"{self.high_freq_factor:g}"
            )
        derived = self.factor is not None and self.original_context is not None
        if self.kind == "longrope" and self.attention_factor is None and not derived:
            raise ValueError(
                "longrope scaling needs attention_factor, or factor and original_context to derive it from"
            )
        if any(factor <= 0 for factor in self.factors or ()):
            raise ValueError("factors must be greater than 0")
        return self


class Rope(Spec):
    """Rotary position embedding (arXiv 2104.09864): pairs of channels are rotated by angles that grow with
    the position.

    theta: base of the geometric frequencies. fraction: share of each head's channels that is rotated, the
    first ones. interleaved: pairs are channels (2i, 2i + 1); otherwise (i, i + rotated / 2). scaling: for
    contexts beyond those of the first training.
    """

    theta: float = Field(default=10_000.0, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    interleaved: bool = False
    scaling: RopeScaling | None = Field(default=None, json_schema_extra=or_none)

    @field_validator("scaling", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _yarn_has_a_base(self) -> Rope:
        if self.scaling is not None and self.scaling.kind == "yarn" and self.theta <= 1:
            raise ValueError(f"yarn scaling needs a theta above 1, found {self.theta:g}")
        return self

    def rotary_dim(self, head_dim: int) -> int:
        return int(head_dim * self.fraction)

    def check(self, head_dim: int) -> None:
        """Raise `FieldError` where heads of this width cannot be rotated so."""
        rotated = self.rotary_dim(head_dim)
        if rotated % 2 or not rotated:
            raise FieldError(
                "rope", f"rotates {rotated} of {head_dim} channels a head; expected an even number above 0"
            )
        factors = self.scaling.factors if self.scaling else None
        if factors is not None and len(factors) != rotated // 2:
            raise FieldError(
                "rope", f"expected {rotated // 2} factors, one a pair of channels, found {len(factors)}"
            )
