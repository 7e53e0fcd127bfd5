"""Step sizes: what softplus makes of a projection and its bias."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def draw_step_bias(bias: Tensor, spec: Any, generator: torch.Generator) -> None:
    """Fill the bias so that training starts at step sizes log-uniform in [dt_min, dt_max], dt_floor at least.

    Call it without gradients.
    """
    low, high = math.log(spec.dt_min), math.log(spec.dt_max)
    dt = torch.rand(bias.shape, generator=generator) * (high - low) + low
    dt = dt.exp().clamp(min=spec.dt_floor)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
