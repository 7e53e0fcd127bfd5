"""Softmax attention."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import Layer, Size, Spec


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


def mean_keys(context: int, window: int | None) -> float:
    """Keys that a token of a causal sequence sees, averaged over its `context` positions."""
    if window is None or window >= context:
        return (context + 1) / 2
    return (window * (window + 1) / 2 + (context - window) * window) / context
