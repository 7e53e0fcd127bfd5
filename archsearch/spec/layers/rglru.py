"""The recurrent layer of Griffin."""

from __future__ import annotations

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import RECURRENT_ITEMSIZE, Layer, Size

BLOCK = 256
"""Channels that a head's gates read, as in RecurrentGemma, where `heads` is not given."""


class RgLru(Layer):
    """Griffin's recurrent block with the real-gated linear recurrent unit (arXiv 2402.19427).

    width: channels of the recurrence; default: d_model. heads: diagonal blocks of the two gates' matrices;
    default: width / 256, at least 1. d_conv: width of the causal depthwise convolution before the
    recurrence. a_init: range of the initial decays a; a^2 is drawn uniformly, as in the released code.
    """

    kind = "rglru"
    family = "ssm"
    symbol = "R"
    glyph = "R"
    tells = frozenset({"memory"})

    width: Size | None = None
    heads: Size | None = None
    d_conv: int = Field(default=4, ge=2, le=64)
    a_init: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)

    def resolve(self, d_model: int) -> RgLru:
        width = self.width or d_model
        heads = self.heads or max(1, width // BLOCK)
        if width % heads:
            given = "" if self.heads else " (the default); give heads too"
            raise FieldError("heads", f"{heads} heads do not divide the width {width}{given}")
        low, high = self.a_init
        if not 0 < low <= high < 1:
            raise FieldError(
                "a_init", f"expected [low, high] with 0 < low <= high < 1, found [{low:g}, {high:g}]"
            )
        return self.model_copy(update={"width": width, "heads": heads})

    def inner_width(self, d_model: int) -> int:
        assert self.width, "resolve the layer first"
        return self.width

    def block_width(self, d_model: int) -> int:
        """Channels of one block of the gates."""
        assert self.heads, "resolve the layer first"
        return self.inner_width(d_model) // self.heads

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        width = self.inner_width(d_model)
        return {"linear_y": (width,), "linear_x": (width,)}

    def params(self, d_model: int, project: bool = True) -> int:
        width = self.inner_width(d_model)
        count = 2 * width * (self.input_width(d_model) + 1) + width * (self.d_conv + 1)
        count += 2 * width * (self.block_width(d_model) + 1) + width
        return count + ((width + 1) * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        width = self.inner_width(d_model)
        matmul = 4 * width * (self.input_width(d_model) + self.block_width(d_model))
        matmul += 2 * width * d_model if project else 0
        return matmul + 2 * width * self.d_conv + 5 * width

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        return self.inner_width(d_model) * ((self.d_conv - 1) * itemsize + max(RECURRENT_ITEMSIZE, itemsize))
