"""Channel mixers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import Layer, Size

Activation = Literal["swiglu", "geglu", "geglu_tanh", "reglu", "gelu", "gelu_tanh", "relu", "relu2", "silu"]
GATED = ("swiglu", "geglu", "geglu_tanh", "reglu")


class Mlp(Layer):
    """Two-layer channel mixer: act(W_up x), or act(W_gate x) * W_up x (arXiv 2002.05202), then W_down.

    expand: hidden width / d_model; default: 4, or 8/3 rounded up to a multiple of 8 where the activation is
    gated. hidden: the hidden width itself, in place of expand. activation: between the two projections; those
    with glu in their names are gated, tanh marks GELU's tanh form, relu2 is relu squared (arXiv 2109.08668).
    gate_scale: constant factor of what the activation reads. bias: of both projections.
    """

    kind = "mlp"
    family = "channel"
    symbol = "-"
    glyph = "-"
    alternatives = (frozenset({"expand", "hidden"}),)

    expand: float | None = Field(default=None, gt=0, le=1 << 12)
    hidden: Size | None = None
    activation: Activation = "swiglu"
    gate_scale: float = Field(default=1.0, gt=0)
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

    def up_width(self, d_model: int) -> int:
        """Outputs of the input projection: where gated, the gate's and then the values'."""
        return self.inner_width(d_model) * (2 if self.gated else 1)

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"up_proj": (self.up_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        into = self.up_width(d_model)
        count = self.input_width(d_model) * into + (into if self.bias else 0)
        return count + (self.inner_width(d_model) * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        matmul = 2 * self.input_width(d_model) * self.up_width(d_model)
        return matmul + (2 * self.inner_width(d_model) * d_model if project else 0)
