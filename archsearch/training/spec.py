"""The `training` section of an experiment. Pydantic only: read before torch is loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from archsearch.spec.errors import refuse
from archsearch.spec.layers import Spec
from archsearch.spec.quantities import Count

MAX_TOKENS = 10**15
"""More than anybody trains on: such a number is a slip."""


class TrainingSpec(Spec):
    """How a model is trained.

    tokens: the budget; training takes tokens // tokens_per_step optimiser steps, at least one. context:
    length of the text sequences. lr: peak learning rate of AdamW (arXiv 1711.05101). schedule: after
    `warmup` (a share of the steps), cosine to `final_lr` times the peak; or wsd, constant and then linear
    over the last `decay` share (arXiv 2404.06395); or constant. clip: of the gradient's global norm.
    precision: `bfloat16` runs the forward and backward pass under autocast, parameters stay float32.
    checkpoint_every: optimiser steps between checkpoints. seed: of the initial weights and the data order.
    """

    tokens: Count = Field(default=1_000_000, ge=1, le=MAX_TOKENS)
    context: int = Field(default=128, ge=2)
    tokens_per_step: Count = Field(default=2048, ge=2)
    lr: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    decay: float = Field(default=0.2, gt=0, le=1)
    final_lr: float = Field(default=0.05, ge=0, le=1)
    betas: tuple[float, float] = Field(default=(0.9, 0.98), strict=False)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: int = Field(default=200, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _is_possible(self) -> TrainingSpec:
        if self.tokens_per_step % self.context:
            refuse(
                ("tokens_per_step",),
                f"{self.tokens_per_step} tokens a step are no multiple of the context, {self.context}",
            )
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            where = "decay" if "decay" in self.model_fields_set else "warmup"
            refuse((where,), f"a warm-up of {self.warmup:g} and a decay of {self.decay:g} overlap")
        if not all(0 <= beta < 1 for beta in self.betas):
            refuse(("betas",), f"expected two numbers in [0, 1), found {list(self.betas)}")
        return self

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)
