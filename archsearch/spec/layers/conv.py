"""Layers that mix a few neighbouring tokens by convolution alone."""

from __future__ import annotations

from pydantic import Field

from archsearch.spec.layers.base import Layer, Size


class GatedConv(Layer):
    """LFM2's gated short convolution (arXiv 2511.23404): C * conv(B * x), between two projections.

    width: channels of B, C and x each; default: d_model. d_conv: width of the causal depthwise convolution.
    conv_bias: of the convolution. bias: of both projections.
    """

    kind = "gated_conv"
    family = "ssm"
    symbol = "C"
    glyph = "C"

    width: Size | None = None
    d_conv: int = Field(default=3, ge=2, le=64)
    bias: bool = False
    conv_bias: bool = False

    def resolve(self, d_model: int) -> GatedConv:
        return self.model_copy(update={"width": self.width or d_model})

    def inner_width(self, d_model: int) -> int:
        assert self.width, "resolve the layer first"
        return self.width

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (3 * self.inner_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        width = self.inner_width(d_model)
        count = 3 * width * (self.input_width(d_model) + (1 if self.bias else 0))
        count += width * (self.d_conv + (1 if self.conv_bias else 0))
        return count + (width * d_model + (d_model if self.bias else 0) if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        width = self.inner_width(d_model)
        matmul = 2 * width * (3 * self.input_width(d_model) + (d_model if project else 0))
        return matmul + 2 * width * self.d_conv

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return self.inner_width(d_model) * (self.d_conv - 1) * itemsize
