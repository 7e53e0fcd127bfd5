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
    tells = frozenset({"memory"})

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
        _check_initial_decays(self)
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

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (self.in_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        count = self.input_width(d_model) * self.in_width(d_model) + self.conv_width(d_model) * self.d_conv
        count += 2 * self._heads()[1] + self.value_dim
        return count + (self.inner_width(d_model) * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        """As of any layer, but 7 operations an element of state: what k finds is read and summed too."""
        inner = self.inner_width(d_model)
        matmul = 2 * self.input_width(d_model) * self.in_width(d_model)
        matmul += 2 * inner * d_model if project else 0
        return matmul + 2 * self.conv_width(d_model) * self.d_conv + 7 * inner * self.key_dim

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        conv = self.conv_width(d_model) * (self.d_conv - 1) * itemsize
        return conv + self.inner_width(d_model) * self.key_dim * max(RECURRENT_ITEMSIZE, itemsize)


class Kda(Layer):
    """Kimi Delta Attention (arXiv 2510.26692): the gated delta rule with a decay a channel of the keys.

    heads: default: d_model / head_dim, at least 1. head_dim: channels a head, of q, k and v alike. d_conv:
    width of the causal depthwise convolution on q, k and v. gate_rank: width that the decays and the output
    gate pass through, each by itself; `full` for none, a projection each; default: head_dim. beta_scale: as
    of `gated_deltanet`. decay_bound: log decays are -decay_bound sigmoid(A x), so that none is stronger (Ling
    2.5, GLM-5-Next: 5); default: -A softplus(x), without a bound. norm_eps: of the norm of each head's
    output; default: the model's. dt_min, dt_max: range of the initial softplus(x), log-uniform. dt_floor: the
    least of them. A_init: range of the initial A, the lower end excluded.
    """

    kind = "kda"
    family = "ssm"
    symbol = "K"
    glyph = "K"
    tells = frozenset({"memory"})

    heads: Size | None = None
    head_dim: Size = 64
    d_conv: int = Field(default=4, ge=2, le=64)
    gate_rank: Size | Literal["full"] | None = None
    beta_scale: Literal[1, 2] = 1
    decay_bound: float | None = Field(default=None, gt=0)
    norm_eps: float | None = Field(default=None, gt=0)
    dt_min: float = Field(default=1e-3, gt=0)
    dt_max: float = Field(default=0.1, gt=0)
    dt_floor: float = Field(default=1e-4, gt=0)
    A_init: tuple[float, float] = Field(default=(1.0, 16.0), strict=False)

    def resolve(self, d_model: int) -> Kda:
        _check_initial_decays(self)
        heads = self.heads or max(1, d_model // self.head_dim)
        return self.model_copy(update={"heads": heads, "gate_rank": self.gate_rank or self.head_dim})

    def inner_width(self, d_model: int) -> int:
        assert self.heads is not None, "resolve the layer first"
        return self.heads * self.head_dim

    def gate_width(self, d_model: int) -> int:
        """Outputs of the input projection for the decays, and as many for the output gate."""
        assert self.gate_rank is not None, "resolve the layer first"
        return self.inner_width(d_model) if self.gate_rank == "full" else self.gate_rank

    def in_width(self, d_model: int) -> int:
        """Outputs of the input projection: q, k, v, the decays, the gate, and b."""
        inner = self.inner_width(d_model)
        return 3 * inner + 2 * self.gate_width(d_model) + inner // self.head_dim

    def _from_rank(self, d_model: int) -> int:
        """Weights that take the decays and the gate from their rank to a number a channel."""
        return 0 if self.gate_rank == "full" else 2 * self.gate_width(d_model) * self.inner_width(d_model)

    def projections(self, d_model: int) -> dict[str, tuple[int, ...]]:
        return {"in_proj": (self.in_width(d_model),)}

    def params(self, d_model: int, project: bool = True) -> int:
        inner = self.inner_width(d_model)
        count = self.input_width(d_model) * self.in_width(d_model) + self._from_rank(d_model)
        count += 3 * inner * self.d_conv + inner + inner // self.head_dim + self.head_dim
        return count + (inner * d_model if project else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        """As of any layer, but 7 operations an element of state, as of `gated_deltanet`."""
        inner = self.inner_width(d_model)
        matmul = 2 * (self.input_width(d_model) * self.in_width(d_model) + self._from_rank(d_model))
        matmul += 2 * inner * d_model if project else 0
        return matmul + 6 * inner * self.d_conv + 7 * inner * self.head_dim

    def state_bytes(self, d_model: int, context: int, itemsize: int) -> int:
        inner = self.inner_width(d_model)
        return inner * (3 * (self.d_conv - 1) * itemsize + self.head_dim * max(RECURRENT_ITEMSIZE, itemsize))


def _check_initial_decays(layer: GatedDeltaNet | Kda) -> None:
    if layer.dt_min > layer.dt_max:
        raise FieldError("dt_min", f"dt_min {layer.dt_min:g} is above dt_max {layer.dt_max:g}")
    low, high = layer.A_init
    if not 0 <= low <= high or not high:
        raise FieldError(
            "A_init",
            f"expected [low, high] with 0 <= low <= high and high > 0, found [{low:g}, {high:g}]",
        )
