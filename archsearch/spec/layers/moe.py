"""Mixtures of experts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from archsearch.spec.errors import FieldError
from archsearch.spec.layers.base import Layer, Size
from archsearch.spec.layers.mlp import Activation, Mlp


class Moe(Layer):
    """Mixture of experts (arXiv 1701.06538): every token goes through top_k of the experts, which are MLPs,
    and their outputs are summed with the router's weights. No token is ever dropped.

    The router computes in float32 at least. Scores s are the softmax or the sigmoid of its logits; experts
    are chosen by s + selection bias, and weighed by s alone.

    experts: how many there are. top_k: experts a token uses. hidden: width of each expert; default: so that
    the experts a token uses are together as wide as an `mlp` by default. activation: as of an `mlp`.
    router: how logits become scores. renormalise: divide the chosen experts' scores by their sum; default:
    where top_k is above 1, since a lone expert's weight would always be 1. renormalise_eps: added to that
    sum. routed_scale: constant factor of the weights. groups: the experts form this many groups of
    neighbours. top_groups: experts are chosen from this many groups only, those whose two best experts score
    highest (arXiv 2412.19437); default: all. selection_bias: a number an expert, no parameter, that training
    moves to balance the experts' loads (arXiv 2408.15664). bias_rate: how far it moves a training step, up
    where the expert's load was below the mean, down where above; 0 for never; default: 0.001 with a
    selection bias. balance: coefficient of the load-balancing loss in training (arXiv 2101.03961), experts x
    the sum over experts of the share of tokens that use it x its mean score; default: 0.01, or 0 with a
    selection bias that moves. latent: width that the routed experts read and write, between two projections
    of their own; default: none, they read and write the stream. shared: width of an expert that every token
    uses besides. shared_gate: multiply its output by the sigmoid of a projection of the input. bias: of the
    shared expert and the latent projections; routed experts and routers have none.
    """

    kind = "moe"
    family = "channel"
    symbol = "E"
    glyph = "E"

    experts: Size = 8
    top_k: Size = 2
    hidden: Size | None = None
    activation: Activation = "swiglu"
    router: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool | None = None
    renormalise_eps: float = Field(default=1e-20, ge=0)
    routed_scale: float = Field(default=1.0, gt=0)
    groups: Size = 1
    top_groups: Size | None = None
    selection_bias: bool = False
    bias_rate: float | None = Field(default=None, ge=0)
    balance: float | None = Field(default=None, ge=0)
    latent: Size | None = None
    shared: Size | None = None
    shared_gate: bool = False
    bias: bool = False

    def resolve(self, d_model: int) -> Moe:
        top_groups = self.top_groups or self.groups
        self._check_choice(top_groups)
        if self.bias_rate and not self.selection_bias:
            raise FieldError("bias_rate", "there is no selection_bias to move; set selection_bias: true")
        if self.shared_gate and self.shared is None:
            raise FieldError("shared_gate", "there is no shared expert to gate; give shared, its width")
        if self.bias and self.shared is None and self.latent is None:
            raise FieldError(
                "bias", "routed experts have none; bias is of the shared expert and the latent projections"
            )
        bias_rate = self.bias_rate if self.bias_rate is not None else 1e-3 * self.selection_bias
        update: dict[str, Any] = {
            "hidden": self.hidden or self._default_hidden(d_model),
            "top_groups": top_groups,
            "renormalise": self.renormalise if self.renormalise is not None else self.top_k > 1,
            "bias_rate": bias_rate,
            "balance": self.balance if self.balance is not None else 0.0 if bias_rate else 0.01,
        }
        return self.model_copy(update=update)

    def _check_choice(self, top_groups: int) -> None:
        if self.top_k > self.experts:
            raise FieldError("top_k", f"a token cannot use {self.top_k} of {self.experts} experts")
        if self.experts % self.groups:
            raise FieldError("groups", f"{self.groups} groups do not divide {self.experts} experts")
        if top_groups > self.groups:
            raise FieldError("top_groups", f"{top_groups} top_groups of only {self.groups} groups")
        open_to_a_token = self.experts // self.groups * top_groups
        if self.top_k > open_to_a_token:
            raise FieldError(
                "top_k",
                f"a token cannot use {self.top_k} of the {open_to_a_token} experts in its top_groups",
            )

    def _default_hidden(self, d_model: int) -> int:
        dense = Mlp(activation=self.activation).resolve(d_model).inner_width(d_model)
        return -(-dense // self.top_k // 8) * 8

    @property
    def expert(self) -> Mlp:
        """One expert, as a layer of width `expert_width`."""
        assert self.hidden, "resolve the layer first"
        inputs = () if self.latent else self.inputs
        return Mlp(hidden=self.hidden, activation=self.activation, inputs=inputs)

    def expert_width(self, d_model: int) -> int:
        """Width of the stream that routed experts read and write."""
        return self.latent or d_model

    @property
    def shared_expert(self) -> Mlp | None:
        """The expert that every token uses, as a layer."""
        if self.shared is None:
            return None
        return Mlp(hidden=self.shared, activation=self.activation, bias=self.bias, inputs=self.inputs)

    def inner_width(self, d_model: int) -> int:
        """What the output projections read: the routed experts' weighted sum, then the shared expert's part.

        With `latent` the projection back from it is the output projection; else it is the experts' own.
        """
        assert self.hidden, "resolve the layer first"
        return (self.latent or self.hidden) + (self.shared or 0)

    def params(self, d_model: int, project: bool = True) -> int:
        return self._common_params(d_model, project) + self.experts * self._expert_params(d_model, project)

    def active_params(self, d_model: int, project: bool = True) -> int:
        return self._common_params(d_model, project) + self.top_k * self._expert_params(d_model, project)

    def _expert_params(self, d_model: int, project: bool) -> int:
        return self.expert.params(self.expert_width(d_model), project or self.latent is not None)

    def _common_params(self, d_model: int, project: bool) -> int:
        """Of all that every token uses."""
        width = self.input_width(d_model)
        count = self.experts * width + (width if self.shared_gate else 0)
        if self.latent is not None:
            count += self.latent * (width + (1 if self.bias else 0))
            count += d_model * (self.latent + (1 if self.bias else 0)) if project else 0
        return count + (self.shared_expert.params(d_model, project) if self.shared_expert else 0)

    def flops(self, d_model: int, context: int, project: bool = True) -> float:
        width = self.input_width(d_model)
        matmul = 2 * self.experts * width + (2 * width if self.shared_gate else 0)
        if self.latent is not None:
            matmul += 2 * self.latent * (width + (d_model if project else 0))
        own = self.expert.flops(self.expert_width(d_model), context, project or self.latent is not None)
        shared = self.shared_expert.flops(d_model, context, project) if self.shared_expert else 0
        return matmul + self.top_k * own + shared
