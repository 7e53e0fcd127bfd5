"""Multi-head latent attention."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from archsearch.spec.layers.attention import mean_keys
from archsearch.spec.layers.base import Layer, Size
from archsearch.spec.layers.rope import Rope, or_none


class Mla(Layer):
    """Multi-head latent attention of DeepSeek-V2 (arXiv 2405.04434): keys and values are projections of one
    narrow latent a token, and the latent is what is cached.

    heads: default: d_model / 64, at least 1. q_rank: width of the latent that queries come from; default:
    none, queries come from the input. kv_rank: width of the latent of keys and values; default: 4 nope_dim.
    nope_dim: channels of a head's queries and keys that come from the latents, without positions. rope_dim:
    channels beside them that carry the positions, one key of which serves all heads; default: nope_dim / 2.
    value_dim: channels of a head's values; default: nope_dim. rope: how the rope_dim channels are rotated;
    `null` for not at all (Kimi Linear). gate: multiply the heads' outputs by a sigmoid of a projection of
    the input, one number a head or a channel (Ling 3). norm_eps: of the latents' norms; default: the
    model's. bias: on the projections to the latents, and on the output projection. scale: of the scores;
    default: (nope_dim + rope_dim) ** -0.5.
    """

    kind = "mla"
    family = "attention"
    symbol = "@"

    heads: Size | None = None
    q_rank: int | None = Field(default=None, ge=1, le=1 << 24, json_schema_extra=or_none)
    kv_rank: Size | None = None
    nope_dim: Size = 64
    rope_dim: Size | None = None
    value_dim: Size | None = None
    rope: Rope | None = Field(default=Rope(), json_schema_extra=or_none)
    gate: Literal["head", "channel"] | None = Field(default=None, json_schema_extra=or_none)
    norm_eps: float | None = Field(default=None, gt=0)
    bias: bool = False
    scale: float | None = Field(default=None, gt=0)

    @field_validator("rope", "q_rank", "gate", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        return None if value == "none" else value

    def resolve(self, d_model: int) -> Mla:
        rope_dim = self.rope_dim or max(1, self.nope_dim // 2)
        if self.rope is not None:
            self.rope.check(rope_dim)
        derived = {
            "heads": self.heads or max(1, d_model // 64),
            "kv_rank": self.kv_rank or 4 * self.nope_dim,
            "rope_dim": rope_dim,
            "value_dim": self.value_dim or self.nope_dim,
            "scale": self.scale or (self.nope_dim + rope_dim) ** -0.5,
        }
        return self.model_copy(update=derived)

    def widths(self) -> tuple[int, int, int, int]:
        """Channels of all heads' queries and values, of the gate, and of what is cached a token."""
        assert self.heads is not None, "resolve the layer first"
        assert self.kv_rank is not None
        assert self.rope_dim is not None
        assert self.value_dim is not None
        value = self.heads * self.value_dim
        gate = {None: 0, "head": self.heads, "channel": value}[self.gate]
        return self.heads * (self.nope_dim + self.rope_dim), value, gate, self.kv_rank + self.rope_dim

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        query, _, gate, cached = self.widths()
        found: dict[str, tuple[int, ...]] = {"kv_a_proj": (cached,)}
        found |= {"q_proj": (query,)} if self.q_rank is None else {"q_a_proj": (self.q_rank,)}
        return found | ({"gate_proj": (gate,)} if gate else {})

    def inner_width(self, d_model: int) -> int:
        return self.widths()[1]

    def params(self, d_model: int, project: bool = True) -> int:
        cached, q_rank = self.widths()[3], self.q_rank or 0
        norms = q_rank + (self.kv_rank or 0)
        biases = self.bias * (q_rank + cached + (d_model if project else 0))
        return self._weights(d_model, project) + norms + biases

    def _weights(self, d_model: int, project: bool) -> int:
        """Numbers of the matrices, each of which multiplies every token once."""
        query, value, gate, cached = self.widths()
        fan_in, nope = self.input_width(d_model), (self.heads or 0) * self.nope_dim
        count = fan_in * query if self.q_rank is None else (fan_in + query) * self.q_rank
        count += fan_in * (cached + gate) + (self.kv_rank or 0) * (nope + value)
        return count + (value * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        """Of a sequence, whose keys and values are expanded; a step works on the latents instead."""
        query, value, _, _ = self.widths()
        return 2 * self._weights(d_model, project) + 2 * (query + value) * mean_keys(context, None)

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return self.widths()[3] * context * itemsize
