"""Linear attention whose decays do not depend on the input."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import RECURRENT_ITEMSIZE, Layer, Size


class Lightning(Layer):
    """Lightning attention of MiniMax-01 (arXiv 2501.08313): linear attention with one fixed decay a head.

    Head h of H, counted from 1, decays by exp(-decay_scale 2^(-8 h / H)) a token, and has no normaliser; its
    output is normed over all heads together and gated by the sigmoid of a projection of the input.

    heads: default: d_model / 64, at least 1. head_dim: channels a head; default: d_model / heads.
    decay_scale: factor of all decay rates; in MiniMax-01 layer i of n has 1 - i / (n - 1) + 1e-5.
    activation: of queries, keys and values. norm_eps: of the output's norm; default: the model's.
    """

    kind = "lightning"
    family = "ssm"
    symbol = "L"
    glyph = "Y"
    tells = frozenset({"memory"})

    heads: Size | None = None
    head_dim: Size | None = None
    decay_scale: float = Field(default=1.0, gt=0)
    activation: Literal["silu", "gelu", "relu", "none"] = "silu"
    norm_eps: float | None = Field(default=None, gt=0)

    def resolve(self, d_model: int) -> Lightning:
        heads = self.heads or max(1, d_model // 64)
        if self.head_dim is None and d_model % heads:
            raise FieldError("heads", f"{heads} heads do not divide d_model {d_model}; give head_dim too")
        return self.model_copy(update={"heads": heads, "head_dim": self.head_dim or d_model // heads})

    def _head_dim(self) -> int:
        assert self.head_dim is not None, "resolve the layer first"
        return self.head_dim

    def inner_width(self, d_model: int) -> int:
        assert self.heads is not None, "resolve the layer first"
        return self.heads * self._head_dim()

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        inner = self.inner_width(d_model)
        return {"in_proj": (3 * inner, inner)}

    def params(self, d_model: int, project: bool = True) -> int:
        inner = self.inner_width(d_model)
        return inner * (4 * self.input_width(d_model) + 1 + (d_model if project else 0))

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        inner = self.inner_width(d_model)
        matmul = 2 * inner * (4 * self.input_width(d_model) + (d_model if project else 0))
        return matmul + 5 * inner * self._head_dim()

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return self.inner_width(d_model) * self._head_dim() * max(RECURRENT_ITEMSIZE, itemsize)
