"""Softmax attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from archsearch.spec.errors import FieldError, shown
from archsearch.spec.layers.base import Layer, Size
from archsearch.spec.layers.rope import Rope, or_none


class Widths(NamedTuple):
    """Channels of the queries, of own keys and values, of the gate, and of the heads' outputs."""

    q: int
    k: int
    v: int
    gate: int
    out: int

    @property
    def qkv(self) -> int:
        return self.q + self.k + self.v


class Attention(Layer):
    """Causal softmax attention with grouped queries (arXiv 2305.13245).

    heads: query heads; default: d_model / 64, at least 1. kv_heads: default: heads. head_dim: default:
    d_model / heads. value_dim: channels of a value head; default: head_dim. rope: `null` for none (NoPE).
    window: each token sees itself and the window - 1 before it. qk_norm: RMS norm of queries and keys, over
    each head or the full width. conv: width of a causal depthwise convolution on queries, keys and values.
    gate: multiply the heads' outputs by a sigmoid of a projection of the input, one number a head or a
    channel (arXiv 2505.06708). sinks: a learned logit a head joins the softmax's denominator, so that a head
    may attend to nothing (as in gpt-oss). softcap: scores become softcap * tanh(scores / softcap), after
    scaling (as in Gemma 2). bias: on queries, keys, values and gate. output_bias: on the output projection.
    scale: of the scores; default: head_dim ** -0.5. kv_from: id of an attention layer above, whose keys and
    values are read in place of own ones; kv_heads, head_dim, value_dim, window and rope are then that
    layer's.
    """

    kind = "attention"
    family = "attention"
    symbol = "*"
    glyph = "A"
    references: ClassVar[Mapping[str, str]] = {"kv": "kv_from"}
    tells: ClassVar[frozenset[str]] = frozenset({"kv"})

    heads: Size | None = None
    kv_heads: Size | None = None
    head_dim: Size | None = None
    value_dim: Size | None = None
    rope: Rope | None = Field(default=Rope(), json_schema_extra=or_none)
    window: int | None = Field(default=None, ge=1, json_schema_extra=or_none)
    qk_norm: Literal["head", "full"] | None = Field(default=None, json_schema_extra=or_none)
    conv: int | None = Field(default=None, ge=2, le=64, json_schema_extra=or_none)
    gate: Literal["head", "channel"] | None = Field(default=None, json_schema_extra=or_none)
    sinks: bool = False
    softcap: float | None = Field(default=None, gt=0, json_schema_extra=or_none)
    bias: bool = False
    output_bias: bool = False
    scale: float | None = Field(default=None, gt=0)
    kv_from: str | None = None

    @field_validator("rope", "qk_norm", "window", "conv", "gate", "softcap", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    def reading(self, sources: Mapping[str, Layer], d_model: int) -> Attention:
        """With the source's widths, window and rope, which this layer may repeat, not change."""
        source = sources.get("kv")
        if source is None:
            return self
        assert isinstance(source, Attention)
        if source.kv_from is not None:
            raise FieldError(
                "kv_from",
                f"{self.kv_from!r} itself reads those of {source.kv_from!r}; expected {source.kv_from!r}",
            )
        widths = ("kv_heads", "head_dim", "value_dim")
        taken = {name: getattr(source, name) for name in (*widths, "window", "rope")}
        for name, value in taken.items():
            own = getattr(self, name)
            if name == "value_dim" and value is None and own == source.head_dim:
                continue
            unsaid = name not in self.model_fields_set or (own is None and name in widths)
            if own != value and not unsaid:
                expected = f"{name} {_plain(value)}, that of {self.kv_from!r}, whose keys and values it reads"
                raise FieldError(name, f"expected {expected}; found {_plain(own)}")
        return self.model_copy(update=taken)

    def resolve(self, d_model: int) -> Attention:
        heads = self.heads or max(1, d_model // 64)
        kv_heads = self.kv_heads or heads
        if self.head_dim is None and d_model % heads:
            raise FieldError("heads", f"{heads} heads do not divide d_model {d_model}; give head_dim too")
        head_dim = self.head_dim or d_model // heads
        if heads % kv_heads:
            raise FieldError("kv_heads", f"{kv_heads} kv_heads do not divide {heads} heads")
        if self.rope is not None:
            self.rope.check(head_dim)
        scale = self.scale or head_dim**-0.5
        return self.model_copy(
            update={
                "heads": heads,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                # Where they are equal, layers that differ in this alone are the same layer.
                "value_dim": None if self.value_dim == head_dim else self.value_dim,
                "scale": scale,
            }
        )

    def widths(self) -> Widths:
        assert self.heads is not None, "resolve the layer first"
        assert self.kv_heads is not None
        assert self.head_dim is not None
        own, value_dim = 0 if self.kv_from else self.kv_heads, self.value_dim or self.head_dim
        out = self.heads * value_dim
        gate = {None: 0, "head": self.heads, "channel": out}[self.gate]
        return Widths(self.heads * self.head_dim, own * self.head_dim, own * value_dim, gate, out)

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"qkv_proj": tuple(width for width in self.widths()[:-1] if width)}

    def inner_width(self, d_model: int) -> int:
        return self.widths().out

    def params(self, d_model: int, project: bool = True) -> int:
        w = self.widths()
        count = (self.input_width(d_model) + self.bias) * (w.qkv + w.gate) + w.qkv * (self.conv or 0)
        if self.qk_norm == "head":
            count += (1 if self.kv_from else 2) * (self.head_dim or 0)
        elif self.qk_norm == "full":
            count += w.q + w.k
        count += (self.heads or 0) * self.sinks
        return count + ((w.out + self.output_bias) * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        w = self.widths()
        matmul = 2 * self.input_width(d_model) * (w.qkv + w.gate) + (2 * w.out * d_model if project else 0)
        conv = 2 * w.qkv * (self.conv or 0)
        return matmul + conv + 2 * (w.q + w.out) * mean_keys(context, self.window)

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        w = self.widths()
        held = min(context, self.window) if self.window else context
        conv = w.qkv * (self.conv - 1) if self.conv else 0
        return ((w.k + w.v) * held + conv) * itemsize


def _plain(value: Any) -> str:
    """A field's value as a person would write it."""
    if value is None:
        return "none"
    return str(value.model_dump(exclude_defaults=True)) if isinstance(value, Rope) else shown(value)


def mean_keys(context: int, window: int | None) -> float:
    """Keys that a token of a causal sequence sees, averaged over its `context` positions."""
    if window is None or window >= context:
        return (context + 1) / 2
    return (window * (window + 1) / 2 + (context - window) * window) / context
