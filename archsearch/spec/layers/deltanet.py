"""Linear attention by the delta rule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import RECURRENT_ITEMSIZE, Layer, Size


class GatedDeltaNet(Layer):
    """Gated DeltaNet (arXiv 2412.06464), as Qwen3-Next, Qwen3.5 and OLMo Hybrid have it.

    key_heads: heads of q and k; default: d_model / key_dim, at least 1. value_heads: heads of v, of the state
    and of the output; value_heads / key_heads of them share a q and a k; default: 2 x key_heads. key_dim,
    value_dim: channels a head. d_conv: width of the causal depthwise convolution on q, k and v. beta_scale: 1
    for writing strengths in (0, 1), 2 for (0, 2), with which a state transition may have negative
    eigenvalues (arXiv 2411.12537). gate: multiply the normed output by SiLU(z). norm_eps: of the norm of each
    head's output; default: the model's. dt_min, dt_max: range of the initial step sizes, log-uniform.
    dt_floor: the least initial step size. A_init: range of the initial decay rates, the lower end excluded.
    """

    kind = "gated_deltanet"
    family = "ssm"
    symbol = "G"
    glyph = "D"

    key_heads: Size | None = None
    value_heads: Size | None = None
    key_dim: Size = 64
    value_dim: Size = 64
    d_conv: int = Field(default=4, ge=2, le=64)
    beta_scale: Literal[1, 2] = 1
    gate: bool = True
    norm_eps: float | None = Field(default=None, gt=0)
    dt_min: float = Field(default=1e-3, gt=0)
    dt_max: float = Field(default=0.1, gt=0)
    dt_floor: float = Field(default=1e-4, gt=0)
    A_init: tuple[float, float] = Field(default=(0.0, 16.0), strict=False)

    def resolve(self, d_model: int) -> GatedDeltaNet:
        key_heads = self.key_heads or max(1, d_model // self.key_dim)
        value_heads = self.value_heads or 2 * key_heads
        if value_heads % key_heads:
            raise FieldError(
                "value_heads", f"{value_heads} value_heads are not a multiple of {key_heads} key_heads"
            )
        if self.dt_min > self.dt_max:
            raise FieldError("dt_min", f"dt_min {self.dt_min:g} is above dt_max {self.dt_max:g}")
        low, high = self.A_init
        if not 0 <= low <= high or not high:
            raise FieldError(
                "A_init",
                f"expected [low, high] with 0 <= low <= high and high > 0, found [{low:g}, {high:g}]",
            )
        return self.model_copy(update={"key_heads": key_heads, "value_heads": value_heads})

    def _heads(self) -> tuple[int, int]:
        assert self.key_heads is not None, "resolve the layer first"
        assert self.value_heads is not None
        return self.key_heads, self.value_heads

    def inner_width(self, d_model: int) -> int:
        return self._heads()[1] * self.value_dim

    def conv_width(self, d_model: int) -> int:
        """Channels of q, k and v, which pass the convolution together."""
        return 2 * self._heads()[0] * self.key_dim + self.inner_width(d_model)

    def in_width(self, d_model: int) -> int:
        """Outputs of the input projection: q, k, v, z (with the gate), b and a."""
        z = self.inner_width(d_model) if self.gate else 0
        return self.conv_width(d_model) + z + 2 * self._heads()[1]

    def params(self, d_model: int, project: bool = True) -> int:
        count = d_model * self.in_width(d_model) + self.conv_width(d_model) * self.d_conv
        count += 2 * self._heads()[1] + self.value_dim
        return count + (self.inner_width(d_model) * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        """As of any layer, but 7 operations an element of state: what k finds is read and summed too."""
        inner = self.inner_width(d_model)
        matmul = 2 * d_model * self.in_width(d_model) + (2 * inner * d_model if project else 0)
        return matmul + 2 * self.conv_width(d_model) * self.d_conv + 7 * inner * self.key_dim

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        conv = self.conv_width(d_model) * (self.d_conv - 1) * itemsize
        return conv + self.inner_width(d_model) * self.key_dim * max(RECURRENT_ITEMSIZE, itemsize)
