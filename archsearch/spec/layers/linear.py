"""A plain linear map."""

from __future__ import annotations

from archsearch.spec.layers.base import Layer


class Linear(Layer):
    """y = W x: what joins other layers, as after each call of a shared block in Zamba (arXiv 2405.16712).

    bias: add one.
    """

    kind = "linear"
    family = "channel"
    symbol = "."
    glyph = "."

    bias: bool = False

    def inner_width(self, d_model: int) -> int:
        return self.input_width(d_model)

    def params(self, d_model: int, project: bool = True) -> int:
        return d_model * (self.input_width(d_model) + (1 if self.bias else 0)) if project else 0

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        return 2 * d_model * self.input_width(d_model) if project else 0
